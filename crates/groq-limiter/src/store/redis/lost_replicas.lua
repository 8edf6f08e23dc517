-- A replica has gone silent: it waits no longer, and what it had reserved under one limiter and not told the end of comes back.
--
-- KEYS[1] the record, KEYS[2] what that replica has outstanding there; ARGV[1] the channel for updates.
local outstanding = redis.call('GET', KEYS[2]) or ''
local head = redis.call('HMGET', KEYS[1], 'epoch', 'version', 'position', 'waiting', 'learnt')
if not head[1] then return 0 end
local time = redis.call('TIME')
local function text(number) return string.format('%.0f', number) end
local replica, places, shares, waited = string.match(KEYS[2], '[^:]*$'), {}, {}, false
for name, share, at in string.gmatch(head[4] or '', '(%S+):(%d+):(%d+)') do
  if name == replica then
    waited = true
  else
    shares[#shares + 1] = name .. ':' .. share
    places[#places + 1] = shares[#shares] .. ':' .. at
  end
end

local version = text(head[2] + 1)
local fields = { 'version', version, 'waiting', table.concat(places, ' ') }
local reply, returned = { text(time[1] * 1000000 + time[2]), head[1], version, head[3], '0', '0', table.concat(shares, ' '), head[5] or '' }, 0
for code, span, corrections in string.gmatch(outstanding, '(%S-):(%d+):(-?%d+)') do
  local kept = redis.call('HMGET', KEYS[1], 't:' .. code, 'c:' .. code, 'n:' .. code)
  if kept[1] then
    -- What headers have shown since to have come back is back.
    local back = math.max(0, span - math.max(0, corrections - kept[2]))
    local tat = text(kept[1] - back)
    for _, value in ipairs({ 't:' .. code, tat }) do fields[#fields + 1] = value end
    for _, value in ipairs({ code, tat, kept[2], kept[3] }) do reply[#reply + 1] = value end
    returned = returned + 1
  end
end
if returned == 0 and not waited then return 0 end
redis.call('HSET', KEYS[1], unpack(fields))
redis.call('SET', KEYS[2], '', 'PX', '3600000')
redis.call('PUBLISH', ARGV[1], KEYS[1] .. ' ' .. cjson.encode(reply))
return returned
