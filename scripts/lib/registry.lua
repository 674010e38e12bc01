-- What scripts/init_redis.sh does inside of Redis, each time in one step. The private keys,
-- PREFIX:sync:..., are those of the module.
--
-- KEYS  PREFIX:sync:spaces, PREFIX:sync:epoch, PREFIX:sync:wiped; for write also the three
--       public keys of the namespace
-- ARGV  what to do (look, write, show), PREFIX, the namespace, and what each says below
--
-- The answer is "ok" and lines, or one line that says why nothing was changed.

local what, prefix, namespace = ARGV[1], ARGV[2], ARGV[3]
local spaces_key, epoch_key, wiped_key = KEYS[1], KEYS[2], KEYS[3]

local function kind(key) return redis.call("TYPE", key).ok end

-- The servers' counts, their descriptions, their heartbeats.
local function public(space)
    local base = prefix
    if space ~= "default" then base = base .. ":" .. space end
    return base .. ":servers:zset", base .. ":servers:meta", base .. ":heartbeat"
end

-- The namespaces that nodes know, "default", and the one named.
local function spaces()
    local known, list = { default = true, [namespace] = true }, {}
    if kind(spaces_key) == "set" then
        for _, space in ipairs(redis.call("SMEMBERS", spaces_key)) do known[space] = true end
    end
    for space in pairs(known) do list[#list + 1] = space end
    table.sort(list)
    return list
end

-- How many servers a namespace has. A key of a type that it should not have counts as one.
local function count(space)
    local function size(key, wanted, command)
        local is = kind(key)
        if is == wanted then return redis.call(command, key) end
        return is == "none" and 0 or 1
    end
    local zset, meta, beat = public(space)
    return math.max(size(zset, "zset", "ZCARD"), size(meta, "hash", "HLEN"), size(beat, "hash", "HLEN"))
end

local function epoch() return kind(epoch_key) == "string" and redis.call("GET", epoch_key) or "" end

-- A table, empty when the text is not the JSON of one.
local function decoded(text)
    local good, value = pcall(cjson.decode, text or "")
    return good and type(value) == "table" and value or {}
end

-- The epoch, and for each namespace that has servers how many, and its name.
local function look()
    local lines = { "ok", epoch() }
    for _, space in ipairs(spaces()) do
        local servers = count(space)
        if servers > 0 then lines[#lines + 1] = servers .. " " .. space end
    end
    return table.concat(lines, "\n")
end

-- Empties all namespaces. Nodes obey a new epoch when it names theirs among those that it
-- replaces.
local function wipe(old, new, private_keys)
    for _, space in ipairs(spaces()) do
        redis.call("DEL", public(space))
        redis.call("DEL", prefix .. ":sync:meta:" .. space, prefix .. ":sync:beat:" .. space)
    end
    for _, key in ipairs({
        "run", "version", "floor", "records", "index", "graves", "beat-seq", "beat-index", "total-seq", "totals",
        "total-index", "nodes", "spaces", "lease", "epoch", "wiped",
    }) do
        redis.call("DEL", prefix .. ":sync:" .. key)
    end
    for key in private_keys:gmatch("%-([^\n]+)") do
        if key:sub(1, #prefix + 6) == prefix .. ":sync:" then redis.call("DEL", key) end
    end
    if not old:find("%S") then return end
    local words = { new }
    for word in old:gmatch("%S+") do
        if #words < 16 then words[#words + 1] = word end
    end
    local time = redis.call("TIME")
    redis.call("SET", epoch_key, table.concat(words, " "))
    redis.call("SET", wiped_key, string.format("%s%03d", time[1], math.floor(time[2] / 1000)))
end

-- How (fill, keep, wipe), the epoch that was seen, a new one, and lines: "+" and a server,
-- or "-" and a private key that was seen.
local function write()
    local how, seen, new, lines = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
    if epoch() ~= seen then return "changed" end
    if how == "fill" then
        for _, space in ipairs(spaces()) do
            if count(space) > 0 then return "changed" end
        end
    end
    local zset, meta, beat = public(namespace)
    -- Not found out when the half is written. Redis 7 and newer can tell.
    for _, command in ipairs(redis.acl_check_cmd and {
        { "DEL", beat }, { "SET", epoch_key, "" }, { "SADD", spaces_key, "" }, { "ZADD", zset, 0, "" },
        { "HGET", meta, "" }, { "HSET", beat, "", "" },
    } or {}) do
        if not redis.acl_check_cmd(unpack(command)) then return "NOPERM: " .. command[1] .. " of " .. command[2] end
    end
    if how == "wipe" then
        wipe(seen, new, lines)
    else
        local types = { [zset] = "zset", [meta] = "hash", [beat] = "hash", [spaces_key] = "set" }
        for key, wanted in pairs(types) do
            local is = kind(key)
            if is ~= "none" and is ~= wanted then return "the key " .. key .. " is a " .. is .. ", not a " .. wanted end
        end
    end

    local time = redis.call("TIME")
    local now = string.format("%s.%03d", time[1], math.floor(time[2] / 1000))
    redis.call("SADD", spaces_key, namespace)
    for addr, host, port, weight, max_conns, enabled in
        lines:gmatch("%+(%S+) (%S+) (%d+) (%d+) (%d+) (%a+)") do
        local created, more = now, ""
        local old = redis.call("HGET", meta, addr)
        if old then
            local at = decoded(old).created_at
            if type(at) == "number" then created = string.format("%.3f", at) end
            more = ',"updated_at":' .. now
        end
        if enabled == "false" then more = more .. ',"disabled_at":' .. now .. ',"disabled_reason":"manual"' end
        redis.call("ZADD", zset, "NX", 0, addr)
        redis.call("HSET", meta, addr, string.format(
            '{"host":"%s","port":%s,"weight":%s,"max_conns":%s,"enabled":%s,"created_at":%s,"last_heartbeat":%s%s}',
            host, port, weight, max_conns, enabled, created, now, more))
        redis.call("HSET", beat, addr, now)
    end
    -- So that nodes look at once; one that is not told looks soon. It needs a permission of its own.
    if how == "wipe" then redis.pcall("PUBLISH", prefix .. ":sync:changes", "") end
    return "ok"
end

-- Which namespace, or nothing for all. A line for each server, tabs between its cells.
local function show()
    local lines = { "ok" }
    local time = redis.call("TIME")
    local now = time[1] + time[2] / 1e6
    local function hash(key)
        local map, list = {}, kind(key) == "hash" and redis.call("HGETALL", key) or {}
        for i = 1, #list, 2 do map[list[i]] = list[i + 1] end
        return map
    end
    local function number(value) return type(value) == "number" and string.format("%d", value) or "-" end

    local function rows(space)
        local zset, meta, beat = public(space)
        local addrs, connections, heartbeats, rest = {}, {}, hash(beat), {}
        local scores = kind(zset) == "zset" and redis.call("ZRANGE", zset, 0, -1, "WITHSCORES") or {}
        for i = 1, #scores, 2 do
            addrs[#addrs + 1], connections[scores[i]] = scores[i], scores[i + 1]
        end
        local metas = hash(meta)
        for addr in pairs(metas) do
            if not connections[addr] then rest[#rest + 1] = addr end
        end
        table.sort(rest)
        for _, addr in ipairs(rest) do addrs[#addrs + 1] = addr end
        for _, addr in ipairs(addrs) do
            local server, heard = decoded(metas[addr]), tonumber(heartbeats[addr])
            local mark = "?"
            if server.enabled == true then mark = "✓" elseif server.enabled == false then mark = "✗" end
            lines[#lines + 1] = table.concat({
                mark, space, addr, connections[addr] or "-", number(server.weight),
                server.max_conns == 0 and "-" or number(server.max_conns),
                heard and string.format("%.1fs", math.max(0, now - heard)) or "-",
            }, "\t")
        end
    end
    for _, space in ipairs(spaces()) do
        if ARGV[4] == "" or ARGV[4] == space then rows(space) end
    end
    return table.concat(lines, "\n")
end

return ({ look = look, write = write, show = show })[what]()
