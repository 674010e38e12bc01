-- The balancer that people write in Lua over a shared dictionary, as it stands in the
-- documentation that this module was made to outdo: each server is a JSON text under its
-- address, a choice decodes them all and writes one back, and logs while it does (at levels that
-- are off). Left out is what a measurement does not call: removal, status, and
-- decrease_conn_count after a request, which that configuration does not call either, so the
-- counts only grow. Two lines differ, and are marked.

local cjson = require "cjson"
local balancer = require "ngx.balancer"
local ngx_shared = ngx.shared.upstream_servers

local _M = {}

-- Was 60: here nobody sends heartbeats while the others are measured.
local SERVER_EXPIRE_TIME = 86400
local CLEANUP_INTERVAL = 10

local function get_server_key(host, port)
    return host .. ":" .. port
end

function _M.add_server()
    local args = ngx.req.get_uri_args()
    local host = args.host
    local port = tonumber(args.port)

    if not port then
        ngx.status = ngx.HTTP_BAD_REQUEST
        ngx.say('{"error": "port is required"}')
        return
    end

    -- Was the client's address when it is left out: here it never is.
    local server_key = get_server_key(host, port)

    local server_info_str = ngx_shared:get(server_key)
    local server_info

    if server_info_str then
        server_info = cjson.decode(server_info_str)
        server_info.last_heartbeat = ngx.now()
        ngx.log(ngx.INFO, "Updated server heartbeat: ", server_key)
    else
        server_info = {
            host = host,
            port = port,
            conn_count = 0,
            last_heartbeat = ngx.now(),
            created_time = ngx.now()
        }
        ngx.log(ngx.INFO, "Added new server: ", server_key)
    end

    local success, err = ngx_shared:set(server_key, cjson.encode(server_info), SERVER_EXPIRE_TIME)

    if not success then
        ngx.status = ngx.HTTP_INTERNAL_SERVER_ERROR
        ngx.say('{"error": "failed to add server: ' .. err .. '"}')
        return
    end

    ngx.say('{"success": true, "server": "' .. server_key .. '"}')
end

function _M.least_conn_balancer()
    local least_conn_server = nil
    local least_conn_count = math.huge
    local keys = ngx_shared:get_keys(0)

    for _, key in ipairs(keys) do
        ngx.log(ngx.DEBUG, "key", key)
        local server_info_str = ngx_shared:get(key)
        ngx.log(ngx.INFO, "server", server_info_str)
        if server_info_str then
            local server_info = cjson.decode(server_info_str)

            if ngx.now() - server_info.last_heartbeat <= SERVER_EXPIRE_TIME then
                if server_info.conn_count < least_conn_count then
                    least_conn_count = server_info.conn_count
                    least_conn_server = server_info
                end
            end
        end
    end

    if not least_conn_server then
        ngx.log(ngx.ERR, "No available servers found")
        return ngx.exit(ngx.HTTP_SERVICE_UNAVAILABLE)
    end

    least_conn_server.conn_count = least_conn_server.conn_count + 1
    local server_key = get_server_key(least_conn_server.host, least_conn_server.port)
    ngx_shared:set(server_key, cjson.encode(least_conn_server), SERVER_EXPIRE_TIME)

    ngx.ctx.selected_server = server_key

    ngx.log(ngx.DEBUG, "server", least_conn_server.host)
    local ok, err = balancer.set_current_peer(least_conn_server.host, least_conn_server.port)
    if not ok then
        ngx.log(ngx.ERR, "failed to set current peer: ", err)
        _M.decrease_conn_count(server_key)
        return ngx.exit(ngx.HTTP_SERVICE_UNAVAILABLE)
    end
end

function _M.decrease_conn_count(server_key)
    local server_info_str = ngx_shared:get(server_key)
    if server_info_str then
        local server_info = cjson.decode(server_info_str)
        if server_info.conn_count > 0 then
            server_info.conn_count = server_info.conn_count - 1
            ngx_shared:set(server_key, cjson.encode(server_info), SERVER_EXPIRE_TIME)
        end
    end
end

function _M.cleanup_expired_servers()
    local keys = ngx_shared:get_keys(0)
    local removed_count = 0

    for _, key in ipairs(keys) do
        local server_info_str = ngx_shared:get(key)
        if server_info_str then
            local server_info = cjson.decode(server_info_str)
            if ngx.now() - server_info.last_heartbeat > SERVER_EXPIRE_TIME then
                ngx_shared:delete(key)
                removed_count = removed_count + 1
                ngx.log(ngx.INFO, "Removed expired server: ", key)
            end
        end
    end

    if removed_count > 0 then
        ngx.log(ngx.INFO, "Cleanup removed ", removed_count, " expired servers")
    end
end

function _M.init_cleanup_timer()
    local handler
    handler = function(premature)
        if premature then
            return
        end

        _M.cleanup_expired_servers()
        ngx.timer.at(CLEANUP_INTERVAL, handler)
    end

    ngx.timer.at(CLEANUP_INTERVAL, handler)
end

return _M
