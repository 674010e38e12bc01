# Where registry_api may stand: any kind of location; the endpoint is what follows a prefix, or the
# last part of another path. What nginx does around a location it does around this one.

use FindBin;
use Test::Nginx::Socket;
require "$FindBin::Bin/api-talk.pl";

plan tests => 196;

run_tests();

__DATA__

=== TEST 1: a prefix with a slash at its end
--- talk
> POST /upstream/add port=1
< 200 {...}
> GET /upstream/status
< 200 [{...}]
> GET /upstream/
< 404 {"code":404,"message":"Unknown endpoint: ..."}
> GET /upstream/status/
< 404 {"code":404,"message":"Unknown endpoint: status/; ..."}
> GET /upstream/status/x
< 404 {"code":404,"message":"Unknown endpoint: status/x; ..."}
> GET /upstream/x/status
< 404 {"code":404,"message":"Unknown endpoint: x/status; ..."}
> GET /upstream/Status
< 404 {"code":404,"message":"Unknown endpoint: Status; ..."}
> GET /upstream/statuses
< 404 {"code":404,"message":"Unknown endpoint: statuses; ..."}



=== TEST 2: the path is the one that nginx has made canonical
--- talk
> GET /upstream/%73tatus
< 200 []
> GET //upstream//status
< 200 []
> GET /upstream/x/../status
< 200 []
> GET /upstream/./status?ns=backend
< 200 []



=== TEST 3: a prefix without one
--- config
location /upstream { registry_api main; }
--- talk
> POST /upstream/add port=1
< 200 {...}
> GET /upstream/status
< 200 [{...}]
> GET /upstream
< 404 {"code":404,"message":"Unknown endpoint: ..."}
> GET /upstreamstatus
< 404 {"code":404,"message":"Unknown endpoint: ..."}
> GET /upstreams/status
< 404 {"code":404,"message":"Unknown endpoint: ..."}



=== TEST 4: the root, and a prefix that wins over regular expressions
--- config
location / { registry_api main; }
location ^~ /v1/ { registry_api main namespace=backend; }
location ~ status$ { return 204; }
--- talk
> GET /health
< 200 ...
> GET /v1/status
< 200 []



=== TEST 5: an exact location is one endpoint: the last part of its path
--- config
location = /upstream/refresh { registry_api main; }
location = /add { registry_api main; }
location = /upstream/nonsense { registry_api main; }
location /upstream/ { return 404; }
location / { return 404; }
--- talk
> POST /add port=1
< 200 {"addr":"127.0.0.1:1",...}
> POST /upstream/refresh port=1
< 200 {"addr":"127.0.0.1:1","heartbeat_time":*}
> GET /upstream/refresh
< 405 Method not allowed; allowed are POST
> POST /upstream/add port=2
< 404 ...
+ Content-Type: text/html
> POST /upstream/refresh/ port=1
< 404 ...
+ Content-Type: text/html
> GET /upstream/nonsense
< 404 {"code":404,"message":"Unknown endpoint: nonsense; ..."}



=== TEST 6: a regular expression: the last part of the path
--- config
location ~ ^/api/v\d+/upstream/[a-z]+$ { registry_api main; }
location ~* ^/OPEN/(add|refresh)$ { registry_api main; }
--- talk
> POST /api/v1/upstream/add port=1
< 200 {...}
> GET /api/v22/upstream/status
< 200 [{...}]
> POST /open/refresh port=1
< 200 {"addr":"127.0.0.1:1",...}
> GET /api/v1/upstream/nonsense
< 404 {"code":404,"message":"Unknown endpoint: nonsense; ..."}



=== TEST 7: one location inside another, each with its own rules
--- config
location /upstream/ {
    registry_api main;
    location /upstream/look/ { registry_api main read_only; }
    location = /upstream/ping { return 200 "pong\n"; }
}
--- talk
> POST /upstream/add port=1
< 200 {...}
> POST /upstream/look/add port=2
< 403 This location is read only
> GET /upstream/look/status
< 200 [{...}]
> GET /upstream/ping
< 200 ...
+ Content-Type: text/plain



=== TEST 8: a path rewritten to the API
--- config
location /upstream/ { registry_api main; }
location = /register { rewrite ^ /upstream/add last; }
location = /servers { rewrite ^ /upstream/status?ns=backend? last; }
location = /hidden { try_files /nothing @api; }
location @api { registry_api main; }
location /named/ { try_files /nothing @api; }
--- talk
> POST /register port=1
< 200 {"addr":"127.0.0.1:1",...}
> GET /servers?ns=other
< 200 [{...}]
> GET /named/status
< 200 [{...}]
> GET /hidden
< 404 {"code":404,"message":"Unknown endpoint: hidden; ..."}



=== TEST 9: every server block and port may have its own
--- http_config
registry main 128k { }
upstream backend { registry main; }
server {
    listen 127.0.0.1:$TEST_NGINX_RAND_PORT_1;
    location /inside/ { registry_api main; }
}
--- config
location /upstream/ { registry_api main read_only; }
location /inside/ { proxy_pass http://127.0.0.1:$TEST_NGINX_RAND_PORT_1; }
--- talk
> POST /inside/add port=1
< 200 {...}
> GET /upstream/status
< 200 [{...}]



=== TEST 10: deny keeps people out, and nothing changes
--- config
location /upstream/ { registry_api main; }
location /inside/ { registry_api main; deny all; }
location /from/ { registry_api main; allow 127.0.0.0/8; deny all; }
--- talk
> POST /inside/add port=1
< 403 ...
+ Content-Type: text/html
> GET /upstream/status
< 200 []
> POST /from/add port=1
< 200 {...}



=== TEST 11: limit_except: some methods for all, the others for some
--- config
location /upstream/ {
    registry_api main;
    limit_except GET { allow 127.0.0.1; deny all; }
}
location /look/ {
    registry_api main;
    limit_except GET { deny all; }
}
--- talk
> POST /upstream/add port=1
< 200 {"addr":"127.0.0.1:1",...}
> GET /upstream/status
< 200 [{...}]
> GET /look/status
< 200 [{...}]
> POST /look/remove port=1
< 403 ...
+ Content-Type: text/html
> GET /upstream/status
< 200 [{...}]



=== TEST 12: an if block that matches leaves the API where it is
--- config
location /upstream/ {
    registry_api main;
    set $who nobody;
    if ($request_method = POST) { set $who poster; }
    add_header X-Who $who always;
}
--- talk
> POST /upstream/add port=1
< 200 {"addr":"127.0.0.1:1",...}
> GET /upstream/status
< 200 [{...}]
+ X-Who: nobody



=== TEST 13: auth_basic
--- user_files
>>> users
admin:{PLAIN}secret
--- config
location /upstream/ {
    registry_api main;
    auth_basic registry;
    auth_basic_user_file $TEST_NGINX_SERVER_ROOT/html/users;
}
--- talk
> POST /upstream/add port=1
< 401 ...
+ Content-Type: text/html
> POST /upstream/add port=1
+ Authorization: Basic YWRtaW46c2VjcmV0
< 200 {...}



=== TEST 14: limit_req
--- http_config
registry main 128k { }
upstream backend { registry main; }
limit_req_zone $binary_remote_addr zone=main:64k rate=1r/m;
--- config
location /upstream/ { registry_api main; limit_req zone=main; limit_req_status 429; }
--- talk
> POST /upstream/add port=1
< 200 {...}
> POST /upstream/add port=1
< 429 ...
+ Content-Type: text/html



=== TEST 15: an answer of the API is no case for error_page, and takes the headers of nginx
--- config
error_page 400 403 404 405 409 413 415 503 507 =200 /page;
location = /page { return 200 "a page\n"; }
location /upstream/ { registry_api main; add_header X-Node one always; }
--- talk
> POST /upstream/add
< 400 Parameter "port" is required: an integer from 1 to 65535
+ X-Node: one
> GET /upstream/nonsense
< 404 {"code":404,"message":"Unknown endpoint: nonsense; ..."}
+ X-Node: one
> PUT /upstream/add
< 405 Method not allowed; allowed are POST
+ X-Node: one
> GET /upstream/health?ready
< 503 {"code":503,...}
+ X-Node: one



=== TEST 16: a charset for the site is none for the API
--- config
charset koi8-r;
location /upstream/ { registry_api main; }
--- talk
> GET /upstream/status
< 200 []
+ Content-Type: application/json; charset=utf-8



=== TEST 17: auth_request may ask the API
--- config
location /upstream/ { registry_api main; }
location = /page { auth_request /upstream/health; root html; try_files /index.html =404; }
location = /none { auth_request /upstream/nonsense; root html; try_files /index.html =404; }
--- talk
> GET /page
< 200 ...
+ Content-Type: text/html
> GET /none
< 500 ...
+ Content-Type: text/html



=== TEST 18: a subrequest's answer is part of a page
--- config
location /upstream/ { registry_api main; }
location = /both { ssi on; default_type text/html; root html; try_files /both.html =404; }
--- user_files
>>> both.html
[<!--# include virtual="/upstream/health" -->|<!--# include virtual="/upstream/nonsense" -->]
--- request
GET /both
--- response_body_like: ^\[\{"code":200,.*"status":"unhealthy".*\}\n\|\{"code":404,.*\}\n\]\n$



=== TEST 19: a mirrored request that ends at the API is a change as well
--- config
location /upstream/ { registry_api main; }
location = /hello { mirror /upstream/add; proxy_pass http://127.0.0.1:$TEST_NGINX_SERVER_PORT/world; }
location = /world { return 200 "hello\n"; }
--- talk
> POST /hello port=9001
< 200 ...
+ Content-Type: text/plain
> GET /upstream/status
< 200 [{"addr":"127.0.0.1:9001",...}]



=== TEST 20: compressed for those who ask
--- config
location /upstream/ { registry_api main; gzip on; gzip_types application/json; gzip_min_length 1; }
--- request
GET /upstream/health
--- more_headers
Accept-Encoding: gzip
--- response_headers
Content-Encoding: gzip
Content-Type: application/json; charset=utf-8
