-- A slice of what other programs may have written to the public keys: what differs from the shadow of
-- what was written by nodes. It changes nothing.
--
-- KEYS[1]  PREFIX:sync:epoch, which routes the script in a cluster
-- ARGV[1]  JSON, `ScanRequest` in scan.rs
-- Returns  JSON, `ScanReply` there

local q = cjson.decode(ARGV[1])
local S = q.prefix .. ':sync:'
local call = redis.call
local out = { cursor = '0' }

if q.part == 'spaces' then
  local spaces = call('SMEMBERS', S .. 'spaces')
  if #spaces > 0 then out.spaces = spaces end
  return cjson.encode(out)
end

local base = q.prefix .. ':' .. (q.space == 'default' and '' or q.space .. ':')
local meta, beat = base .. 'servers:meta', base .. 'heartbeat'
local meta_shadow, beat_shadow = S .. 'meta:' .. q.space, S .. 'beat:' .. q.space

-- A key of a wrong type is said once in a walk, and looks empty.
local function is(key, kind)
  local found = call('TYPE', key).ok
  return found == 'none' or found == kind
end
local function usable(key) return is(key, 'hash') end
if q.part == 'meta' and q.cursor == '0' then
  local wrong = {}
  for key, kind in pairs({ [meta] = 'hash', [beat] = 'hash', [base .. 'servers:zset'] = 'zset' }) do
    if not is(key, kind) then
      wrong[#wrong + 1] = key
      wrong[#wrong + 1] = kind
    end
  end
  if #wrong > 0 then out.wrong = wrong end
end

local function slice(key, shadow)
  local found = call('HSCAN', key, q.cursor, 'COUNT', q.count)
  out.cursor = found[1]
  local fields, values = {}, {}
  for i = 1, #found[2], 2 do
    fields[#fields + 1] = found[2][i]
    values[#values + 1] = found[2][i + 1]
  end
  local shadows = #fields > 0 and call('HMGET', shadow, unpack(fields)) or {}
  return fields, values, shadows
end

local differ = {}
if q.part == 'meta' and usable(meta) then
  local fields, values, shadows = slice(meta, meta_shadow)
  for i, field in ipairs(fields) do
    if values[i] ~= shadows[i] then
      differ[#differ + 1] = field
      differ[#differ + 1] = values[i]
      differ[#differ + 1] = shadows[i] or ''
      -- What was heard of a server that is new here.
      local heard = usable(beat) and call('HGET', beat, field)
      differ[#differ + 1] = heard or ''
    end
  end
elseif q.part == 'beat' and usable(beat) then
  local fields, values, shadows = slice(beat, beat_shadow)
  for i, field in ipairs(fields) do
    local known = shadows[i] and string.sub(shadows[i], 1, #values[i] + 1) == values[i] .. '|'
    if not known and call('HEXISTS', meta_shadow, field) == 1 then
      differ[#differ + 1] = field
      differ[#differ + 1] = values[i]
    end
  end
elseif q.part == 'gone' and usable(meta) then
  out.total = call('HLEN', meta_shadow)
  local sorted = base .. 'servers:zset'
  if call('TYPE', sorted).ok ~= 'zset' then sorted = nil end
  if q.cursor ~= '0' or call('HLEN', meta) - q.extra < out.total then
    local fields, _, there = slice(meta_shadow, meta)
    for i, field in ipairs(fields) do
      -- Others remove a server from the sorted set as well. One that is still there was lost.
      if not there[i] then
        local kept = sorted and call('ZSCORE', sorted, field)
        differ[#differ + 1] = field
        differ[#differ + 1] = kept and 'lost' or 'gone'
      end
    end
  end
end
if #differ > 0 then out.differ = differ end
local clock = call('TIME')
out.now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
return cjson.encode(out)
