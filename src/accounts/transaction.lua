-- What one app has used and reserved in periods of the calendar, shared by replicas: told, and reserved where it fits, in one step.
--
-- KEYS: for each period its record (a hash) and what this replica has told of it, all with the app's hash tag.
-- ARGV[1] the transaction as JSON, ARGV[2] the channel for updates. Amounts are requests, tokens, billionths of a USD.
-- Everything is read and computed before the first write, so a failure leaves nothing half done.
local request = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function numbers(words)
  local list = {}
  for word in string.gmatch(words, '%S+') do list[#list + 1] = tonumber(word) end
  return list
end
local function words(list)
  local texts = {}
  for at, number in ipairs(list) do texts[at] = string.format('%.0f', number) end
  return table.concat(texts, ' ')
end

local records, fits = {}, true
for i, part in ipairs(request.parts) do
  local record = { used = { 0, 0, 0 }, reserved = { 0, 0, 0 }, version = 0, gone = {} }
  -- A transaction that its replica has given up, and that was held up on the way, must not be applied any more.
  local told = numbers(redis.call('GET', KEYS[2 * i]) or '0 0 0 0')
  if request.serial <= told[1] then return redis.error_reply('STALE a later transaction was applied') end
  local hash = redis.call('HGETALL', KEYS[2 * i - 1])
  for at = 1, #hash, 2 do
    local name, value = hash[at], hash[at + 1]
    if name == 'version' then
      record.version = tonumber(value)
    elseif name == 'used' then
      record.used = numbers(value)
    elseif name ~= 'reserved:' .. request.replica then
      -- What another replica has reserved, after the time when it last said so. It has been killed when that was long ago.
      local other = numbers(value)
      if other[1] + request.lease < now then
        record.gone[#record.gone + 1] = name
      else
        for unit = 1, 3 do record.reserved[unit] = record.reserved[unit] + other[unit + 1] end
      end
    end
  end
  for unit = 1, 3 do
    record.used[unit] = record.used[unit] + math.max(0, part.used[unit] - told[unit + 1])
    record.reserved[unit] = record.reserved[unit] + part.reserved[unit]
    local limit = part.limits[unit]
    if limit >= 0 and record.used[unit] + record.reserved[unit] >= limit then fits = false end
  end
  records[i] = record
end

-- All periods or none.
local granted = request.ask and fits
local reply = { granted and '1' or '0' }
for i, part in ipairs(request.parts) do
  local key, record, mine = KEYS[2 * i - 1], records[i], part.reserved
  if granted then
    for unit = 1, 3 do
      record.reserved[unit] = record.reserved[unit] + request.ask[unit]
      mine[unit] = mine[unit] + request.ask[unit]
    end
  end
  local version = record.version + 1
  redis.call('HSET', key, 'version', words({ version }), 'used', words(record.used))
  if mine[1] + mine[2] + mine[3] > 0 then
    redis.call('HSET', key, 'reserved:' .. request.replica, words({ now, unpack(mine) }))
  else
    record.gone[#record.gone + 1] = 'reserved:' .. request.replica
  end
  if #record.gone > 0 then redis.call('HDEL', key, unpack(record.gone)) end
  redis.call('PEXPIRE', key, part.kept)
  redis.call('SET', KEYS[2 * i], words({ request.serial, unpack(part.used) }), 'PX', part.kept)
  local total = words({ version, record.used[1], record.used[2], record.used[3], unpack(record.reserved) })
  redis.call('PUBLISH', ARGV[2], key .. ' ' .. total)
  reply[#reply + 1] = total
end
return reply
