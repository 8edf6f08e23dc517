-- Reports what a replica has used and reserved for one app, and reserves more if it fits, for several calendar periods in one atomic step.
--
-- KEYS: for each period its record (a hash) and what this replica has reported for it; all have the app's hash tag.
-- ARGV[1] is the transaction as JSON, ARGV[2] the channel for updates. Amounts are requests, tokens and billionths of a USD.
-- Everything is read and computed before the first write, so a failure leaves no partial changes.
local request = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function parse(text)
  local numbers = {}
  for number in string.gmatch(text, '%S+') do numbers[#numbers + 1] = tonumber(number) end
  return numbers
end
local function format(numbers)
  local texts = {}
  for i, number in ipairs(numbers) do texts[i] = string.format('%.0f', number) end
  return table.concat(texts, ' ')
end

local records, fits = {}, true
for i, part in ipairs(request.parts) do
  local record = { used = { 0, 0, 0 }, reserved = { 0, 0, 0 }, version = 0, expired = {} }
  -- A delayed transaction that its replica has given up must not be applied after a later one. A report of an earlier process by
  -- its state file may be repeated, and may lack what that process has reported last.
  local reported = parse(redis.call('GET', KEYS[2 * i]) or '0 0 0 0')
  if not request.earlier and request.serial <= reported[1] then
    return redis.error_reply('STALE a later transaction was applied')
  end
  local hash = redis.call('HGETALL', KEYS[2 * i - 1])
  for at = 1, #hash, 2 do
    local field, value = hash[at], hash[at + 1]
    if field == 'version' then
      record.version = tonumber(value)
    elseif field == 'used' then
      record.used = parse(value)
    elseif field ~= 'reserved:' .. request.replica then
      -- Reservations of another replica, preceded by the time of its last report. They expire if it stops renewing them.
      local other = parse(value)
      if other[1] + request.lease < now then
        record.expired[#record.expired + 1] = field
      else
        for unit = 1, 3 do record.reserved[unit] = record.reserved[unit] + other[unit + 1] end
      end
    end
  end
  for unit = 1, 3 do
    record.used[unit] = record.used[unit] + math.max(0, part.used[unit] - reported[unit + 1])
    record.reserved[unit] = record.reserved[unit] + part.reserved[unit]
    local limit = part.limits[unit]
    if limit >= 0 and record.used[unit] + record.reserved[unit] >= limit then fits = false end
  end
  record.reported = { request.earlier and reported[1] or request.serial }
  for unit = 1, 3 do record.reported[unit + 1] = math.max(part.used[unit], reported[unit + 1]) end
  records[i] = record
end

-- Reserve in all periods or in none.
local granted = request.reserve and fits
local reply = { granted and '1' or '0' }
for i, part in ipairs(request.parts) do
  local key, record, own = KEYS[2 * i - 1], records[i], part.reserved
  if granted then
    for unit = 1, 3 do
      record.reserved[unit] = record.reserved[unit] + request.reserve[unit]
      own[unit] = own[unit] + request.reserve[unit]
    end
  end
  local version = record.version + 1
  redis.call('HSET', key, 'version', format({ version }), 'used', format(record.used))
  if own[1] + own[2] + own[3] > 0 then
    redis.call('HSET', key, 'reserved:' .. request.replica, format({ now, unpack(own) }))
  else
    record.expired[#record.expired + 1] = 'reserved:' .. request.replica
  end
  if #record.expired > 0 then redis.call('HDEL', key, unpack(record.expired)) end
  redis.call('PEXPIRE', key, part.expires_in)
  redis.call('SET', KEYS[2 * i], format(record.reported), 'PX', part.expires_in)
  local total = format({ version, record.used[1], record.used[2], record.used[3], unpack(record.reserved) })
  redis.call('PUBLISH', ARGV[2], key .. ' ' .. total)
  reply[#reply + 1] = total
end
return reply
