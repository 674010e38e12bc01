# Which method each endpoint takes, what the others are told, and the parameters allow_get and
# read_only of registry_api.

use FindBin;
use Test::Nginx::Socket;
require "$FindBin::Bin/api-talk.pl";

plan tests => 197;

run_tests();

__DATA__

=== TEST 1: what changes servers takes POST only, and a GET changes nothing
--- talk
> POST /upstream/add port=1
< 200 {...}
> GET /upstream/add?port=2
< 405 Method not allowed; allowed are POST
+ Allow: POST
> GET /upstream/remove?port=1
< 405 Method not allowed; allowed are POST
+ Allow: POST
> GET /upstream/toggle?port=1&action=disable
< 405 Method not allowed; allowed are POST
+ Allow: POST
> GET /upstream/refresh?port=1
< 405 Method not allowed; allowed are POST
+ Allow: POST
> GET /upstream/weight?port=1&weight=9
< 405 Method not allowed; allowed are POST
+ Allow: POST
> GET /upstream/drain?port=1
< 405 Method not allowed; allowed are POST
+ Allow: POST
> GET /upstream/reset
< 405 Method not allowed; allowed are POST
+ Allow: POST
> GET /upstream/status
< 200 [{...,"port":1,...,"weight":1,...,"state":"up",...}]



=== TEST 2: what only looks takes GET and HEAD
--- talk
> POST /upstream/status
< 405 Method not allowed; allowed are GET, HEAD
+ Allow: GET, HEAD
> POST /upstream/health
< 405 Method not allowed; allowed are GET, HEAD
+ Allow: GET, HEAD
> GET /upstream/status
< 200 []
+ ! Allow
> GET /upstream/health
< 200 ...
+ ! Allow



=== TEST 3: cleanup takes both
--- talk
> GET /upstream/cleanup
< 200 {"expired_count":0,...}
> POST /upstream/cleanup
< 200 {"expired_count":0,...}
> PUT /upstream/cleanup
< 405 Method not allowed; allowed are GET, HEAD, POST
+ Allow: GET, HEAD, POST



=== TEST 4: HEAD is GET without the body
--- talk
> HEAD /upstream/status
< 200
+ Content-Type: application/json; charset=utf-8
> HEAD /upstream/health
< 200
> HEAD /upstream/add?port=1
< 405
+ Allow: POST
> HEAD /upstream/nonsense
< 404
> GET /upstream/status
< 200 []



=== TEST 5: HEAD says how long the body of GET is
--- request
HEAD /upstream/health
--- response_headers
Content-Type: application/json; charset=utf-8
Content-Length: 140
--- response_body eval
""



=== TEST 6: other methods are refused, with a body and without
--- talk
> PUT /upstream/add port=1
< 405 Method not allowed; allowed are POST
+ Allow: POST
> PATCH /upstream/add {"port":1}
< 405 Method not allowed; allowed are POST
+ Allow: POST
> DELETE /upstream/remove?port=1
< 405 Method not allowed; allowed are POST
+ Allow: POST
> DELETE /upstream/status
< 405 Method not allowed; allowed are GET, HEAD
+ Allow: GET, HEAD
> OPTIONS /upstream/status
< 405 Method not allowed; allowed are GET, HEAD
+ Allow: GET, HEAD
> PROPFIND /upstream/add
< 405 Method not allowed; allowed are POST
+ Allow: POST
> QUERY /upstream/add?port=1
< 405 Method not allowed; allowed are POST
+ Allow: POST
> GET /upstream/status
< 200 []



=== TEST 7: an endpoint that is not there is not found, whatever the method
--- talk
> GET /upstream/nonsense
< 404 {"code":404,"message":"Unknown endpoint: nonsense; there are add, remove, toggle, refresh, weight, drain, status, health, reset, cleanup"}
> POST /upstream/nonsense port=1
< 404 {"code":404,"message":"Unknown endpoint: nonsense; ..."}
> PUT /upstream/nonsense port=1
< 404 {"code":404,"message":"Unknown endpoint: nonsense; ..."}



=== TEST 8: allow_get lets GET do what POST does
--- config
location /upstream/ { registry_api main allow_get; }
--- talk
> GET /upstream/add?port=1&weight=2
< 200 {"addr":"127.0.0.1:1",...,"weight":2,...}
> GET /upstream/refresh?port=1
< 200 {"addr":"127.0.0.1:1","heartbeat_time":*}
> GET /upstream/weight?port=1&weight=3
< 200 {"addr":"127.0.0.1:1","weight":3}
> GET /upstream/toggle?port=1&action=disable
< 200 {"addr":"127.0.0.1:1","enabled":false}
> GET /upstream/drain?port=1
< 200 {"addr":"127.0.0.1:1","connections":0}
> GET /upstream/reset
< 200 {"servers_reset":1}
> GET /upstream/remove?port=1
< 200 {"addr":"127.0.0.1:1"}
> POST /upstream/add port=1
< 200 {...}



=== TEST 9: under allow_get the Allow header says so; status still takes no POST
--- config
location /upstream/ { registry_api main allow_get; }
--- talk
> PUT /upstream/add port=1
< 405 Method not allowed; allowed are GET, HEAD, POST
+ Allow: GET, HEAD, POST
> POST /upstream/status
< 405 Method not allowed; allowed are GET, HEAD
+ Allow: GET, HEAD



=== TEST 10: read_only shows everything and changes nothing
--- config
location /upstream/ { registry_api main; }
location /look/     { registry_api main read_only; }
--- talk
> POST /upstream/add port=1
< 200 {...}
> GET /look/status
< 200 [{...,"port":1,...}]
> GET /look/health
< 200 {"code":200,...,"status":"healthy",...}
> POST /look/add port=2
< 403 This location is read only
> POST /look/remove port=1
< 403 This location is read only
> POST /look/toggle port=1&action=disable
< 403 This location is read only
> POST /look/refresh port=1
< 403 This location is read only
> POST /look/weight port=1&weight=2
< 403 This location is read only
> POST /look/drain port=1
< 403 This location is read only
> POST /look/reset
< 403 This location is read only
> POST /look/cleanup
< 403 This location is read only
> GET /look/cleanup
< 403 This location is read only
> GET /look/status
< 200 [{...,"port":1,...,"weight":1,...,"state":"up",...}]



=== TEST 11: read_only wins over allow_get
--- config
location /look/ { registry_api main read_only allow_get; }
--- talk
> GET /look/add?port=1
< 403 This location is read only
> GET /look/status
< 200 []
