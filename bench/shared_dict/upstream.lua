-- The balancer that people write in Lua over a shared dictionary: each server is a JSON
-- text under its address, a choice decodes them all and writes one back. What is
-- needed to run it, and what marks an addition, is in the comments; the rest is the
-- usual code.

local cjson = require "cjson"
local balancer = require "ngx.balancer"
local servers = ngx.shared.upstream_servers

local _M = {}

-- Usually 60 seconds: here nobody sends heartbeats while the others are measured.
local SERVER_EXPIRE_TIME = 86400

local function get_server_key(host, port)
    return host .. ":" .. port
end

function _M.add_server()
    local args = ngx.req.get_uri_args()
    local host, port = args.host, tonumber(args.port)
    if not port then
        ngx.status = ngx.HTTP_BAD_REQUEST
        ngx.say('{"error": "port is required"}')
        return
    end
    local key = get_server_key(host, port)
    local ok, err = servers:set(key, cjson.encode({
        host = host, port = port, conn_count = 0,
        last_heartbeat = ngx.now(), created_time = ngx.now(),
    }), SERVER_EXPIRE_TIME)
    if not ok then
        ngx.status = ngx.HTTP_INTERNAL_SERVER_ERROR
        ngx.say('{"error": "failed to add server: ' .. err .. '"}')
        return
    end
    ngx.say('{"success": true, "server": "' .. key .. '"}')
end

function _M.least_conn_balancer()
    local best
    local least = math.huge
    for _, key in ipairs(servers:get_keys(0)) do
        local text = servers:get(key)
        if text then
            local info = cjson.decode(text)
            if ngx.now() - info.last_heartbeat <= SERVER_EXPIRE_TIME and info.conn_count < least then
                least = info.conn_count
                best = info
            end
        end
    end
    if not best then
        ngx.log(ngx.ERR, "No available servers found")
        return ngx.exit(ngx.HTTP_SERVICE_UNAVAILABLE)
    end

    best.conn_count = best.conn_count + 1
    local key = get_server_key(best.host, best.port)
    servers:set(key, cjson.encode(best), SERVER_EXPIRE_TIME)
    ngx.ctx.selected_server = key

    local ok, err = balancer.set_current_peer(best.host, best.port)
    if not ok then
        ngx.log(ngx.ERR, "failed to set current peer: ", err)
        _M.decrease_conn_count(key)
        return ngx.exit(ngx.HTTP_SERVICE_UNAVAILABLE)
    end
end

-- Called from log_by_lua: without that the counts only ever grow.
function _M.decrease_conn_count(key)
    local text = key and servers:get(key)
    if text then
        local info = cjson.decode(text)
        if info.conn_count > 0 then
            info.conn_count = info.conn_count - 1
            servers:set(key, cjson.encode(info), SERVER_EXPIRE_TIME)
        end
    end
end

return _M
