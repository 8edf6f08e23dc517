-- A replica has gone silent: what it had reserved on one lane and not told the end of comes back.
--
-- KEYS[1] the lane, KEYS[2] what that replica had applied last there; ARGV[1] the channel for news. Should it come back after all,
-- its next transaction finds the marks left here and takes the same again.
local serial, applied, held, lent = string.match(redis.call('GET', KEYS[2]) or '', '^(%d+) (%d+) (%d) (.+)$')
local head = redis.call('HMGET', KEYS[1], 'born', 'version', 'position')
if not lent or not head[1] then return 0 end
local time = redis.call('TIME')
local function text(number) return string.format('%.0f', number) end

local version = text(head[2] + 1)
local fields, marks, reply = { 'version', version }, {}, { text(time[1] * 1000000 + time[2]), head[1], version, head[3], '0', '0', '0', '0' }
for code, span, corrections in string.gmatch(lent, '(%S-):(%d+):(-?%d+)') do
  local kept = redis.call('HMGET', KEYS[1], 't:' .. code, 'c:' .. code, 'a:' .. code, 'n:' .. code, 'r:' .. code, 'b:' .. code, 'd:' .. code)
  if kept[1] then
    -- What headers have shown since to have come back is back.
    local back = math.max(0, span - math.max(0, corrections - kept[2]))
    local tat, adjusted = text(kept[1] - back), text(kept[3] - back)
    for _, value in ipairs({ 't:' .. code, tat, 'a:' .. code, adjusted }) do fields[#fields + 1] = value end
    for _, value in ipairs({ code, tat, kept[2], adjusted, kept[4], kept[5], '0', kept[6], kept[7] or '' }) do reply[#reply + 1] = value end
    marks[#marks + 1] = '!' .. code .. ':' .. text(back)
  end
end
if #marks == 0 then return 0 end
redis.call('HSET', KEYS[1], unpack(fields))
redis.call('SET', KEYS[2], serial .. ' ' .. applied .. ' ' .. held .. ' ' .. table.concat(marks, ' '), 'PX', '3600000')
redis.call('PUBLISH', ARGV[1], KEYS[1] .. ' ' .. cjson.encode(reply))
return 1
