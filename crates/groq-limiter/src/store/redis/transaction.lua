-- Applies one transaction to a limiter's record, which replicas share: settlements, observations and a reservation in one
-- step, by the server's clock.
--
-- KEYS[1]: the record; ARGV[1]: the transaction (both are JSON, see protocol.rs); ARGV[2]: the name of the replica; ARGV[3]:
-- the channel for updates. Returns whether the reservation was made, the wait, and the record.
--
-- Times and spans are microseconds. Times in the record are relative to its creation (its epoch), times in the transaction
-- to now. The record is written once, at the end, so a script that fails changes nothing.
local request, replica = cjson.decode(ARGV[1]), ARGV[2]
-- In microseconds. A replica that is silent for TURN loses its place in the row of waiting replicas. After LEASE, its
-- outstanding reservations are released.
local TURN, LEASE = 1000000, 8000000
local time = redis.call('TIME')
local clock = time[1] * 1000000 + time[2]
local stored = redis.call('GET', KEYS[1])
local record = stored and cjson.decode(stored) or {
  epoch = string.format('%.0f', clock), version = 0, position = 0, quotas = {}, replicas = {}, limits = '',
}
local now = clock - record.epoch
record.now, record.version = now, record.version + 1
-- The replica has not followed this record: the record is new, or the replica was without the store. Then what the replica
-- knows counts as well.
local unknown = request.epoch ~= record.epoch
if unknown then record.position = math.max(record.position, request.position) end

local own = record.replicas[replica] or {}
record.replicas[replica], own.heard = own, now
for name, other in pairs(record.replicas) do
  if other.since and other.heard + TURN < now then other.since = nil end
  if other.heard + LEASE < now then
    for code, held in pairs(other.held) do
      local quota = record.quotas[code]
      -- Corrections since then may have given back a part of it already.
      quota.tat = quota.tat - math.max(0, held.span - math.max(0, held.corrections - quota.corrections))
    end
    record.replicas[name] = nil
  end
end
-- What is taken by the heads of other replicas that began to wait before this one, in millionths of the limit.
local ahead = 0
for _, other in pairs(record.replicas) do
  if other.since and other.since < (own.since or record.version) then ahead = ahead + other.share end
end

local wait, share = 0, 0
for _, cell in ipairs(request.cells) do
  -- tat: when the bucket is full again. corrections: sum of all corrections by headers.
  local known = now + cell.known
  local quota = record.quotas[cell.code] or { tat = known, corrections = 0 }
  record.quotas[cell.code] = quota
  if unknown then quota.tat = math.max(quota.tat, known) end
  if cell.settled > 0 then quota.tat = math.max(quota.tat, now) end
  quota.tat = quota.tat + cell.settled
  -- An observation is relative to the sum of corrections in the record that the replica followed, so it says nothing about
  -- another record.
  local seen = cell.observed
  if seen and not unknown then
    local at = now + seen.at
    quota.tat = math.max(quota.tat, at)
    local error = now + seen.truth - math.max(now + seen.tat + quota.corrections - seen.corrections, at)
    -- If less is in use than expected, another replica may not have sent yet what it was granted, or may not have reported
    -- yet what it got back. What is really free shows in every header, so an eighth of the difference at a time is enough.
    if error < 0 then error = math.ceil(error / 8) end
    quota.tat, quota.corrections = quota.tat + error, quota.corrections + error
  end
  if cell.units > 0 then
    local first = math.ceil(ahead * cell.whole / 1000000)
    wait = math.max(wait, math.max(quota.tat, now) + first + cell.units + cell.margin - cell.whole - now)
    share = math.max(share, math.ceil(cell.units * 1000000 / cell.whole))
  end
end

-- The reservation is made in all dimensions or in none. `wait` includes what the heads before this one take, so it is not
-- made before theirs unless there is room for all of them.
local granted = request.asks and wait <= 0
local stays = request.waiting > (granted and 1 or 0)
if granted then record.position = record.position + 1 end
if request.asks then own.share = share end
if granted or not stays then own.since = nil end
if stays and request.asks then own.since = own.since or record.version end

local longest = 0
own.held = {}
for _, cell in ipairs(request.cells) do
  local quota, taken = record.quotas[cell.code], granted and cell.units or 0
  if taken > 0 then quota.tat = math.max(quota.tat, now) + taken end
  longest = math.max(longest, quota.tat - now)
  -- Released if this replica goes silent.
  local span = cell.outstanding + taken
  if span > 0 then own.held[cell.code] = { span = span, corrections = quota.corrections } end
end

record.limits = request.limits or record.limits
local text = cjson.encode(record)
redis.call('SET', KEYS[1], text, 'PX', string.format('%.0f', longest / 1000 + 600000))
redis.call('PUBLISH', ARGV[3], KEYS[1] .. ' ' .. text)
return { granted and 1 or 0, wait, text }
