# Each endpoint: what it takes, what it does, and its reply to the letter.

use FindBin;
use Test::Nginx::Socket;
require "$FindBin::Bin/api-talk.pl";

plan tests => 376;

run_tests();

__DATA__

=== TEST 1: add registers a server, with weight 1 and at most 1000 requests unless it says otherwise
--- talk
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {"addr":"10.0.0.1:9001","host":"10.0.0.1","port":9001,"weight":1,"max_conns":1000,"enabled":true}
> POST /upstream/add host=10.0.0.2&port=9001&weight=5&max_conns=20
< 200 {"addr":"10.0.0.2:9001","host":"10.0.0.2","port":9001,"weight":5,"max_conns":20,"enabled":true}



=== TEST 2: add at the ends of the ranges; weight 0 is no requests, max_conns 0 no limit
--- talk
> POST /upstream/add host=10.0.0.1&port=1&weight=0&max_conns=0
< 200 {...,"port":1,"weight":0,"max_conns":0,...}
> POST /upstream/add host=10.0.0.1&port=65535&weight=65535&max_conns=2147483647
< 200 {...,"port":65535,"weight":65535,"max_conns":2147483647,...}



=== TEST 3: status lists the servers in the order in which they came, with all their fields
--- talk
> POST /upstream/add host=10.0.0.2&port=9002&weight=3
< 200 {...}
> POST /upstream/add host=10.0.0.1&port=9001&max_conns=7
< 200 {...}
> GET /upstream/status
< 200 {"code":200,"message":"Success","data":[{"addr":"10.0.0.2:9002","host":"10.0.0.2","port":9002,"namespace":"backend","connections":0,"weight":3,"max_conns":1000,"enabled":true,"is_active":true,"state":"up","last_heartbeat":*,"time_since_heartbeat":*,"created_at":*,"updated_at":*,"disabled_at":null,"disabled_reason":null,"requests":0,"fails":0...},{"addr":"10.0.0.1:9001",...,"max_conns":7,...}],"total":2,"timestamp":*}



=== TEST 4: status of a namespace without servers is an empty list
--- talk
> GET /upstream/status
< 200 {"code":200,"message":"Success","data":[],"total":0,"timestamp":*}



=== TEST 5: remove takes the server out, once
--- talk
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {...}
> POST /upstream/add host=10.0.0.2&port=9001
< 200 {...}
> POST /upstream/remove host=10.0.0.1&port=9001
< 200 {"addr":"10.0.0.1:9001"}
> GET /upstream/status
< 200 {"code":200,"message":"Success","data":[{"addr":"10.0.0.2:9001",...}],"total":1,"timestamp":*}
> POST /upstream/remove host=10.0.0.1&port=9001
< 404 Server not found: 10.0.0.1:9001



=== TEST 6: toggle disables a server by hand, and says since when
--- talk
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {...}
> POST /upstream/toggle host=10.0.0.1&port=9001&action=disable
< 200 {"addr":"10.0.0.1:9001","enabled":false}
> GET /upstream/status
< 200 [{...,"enabled":false,...,"state":"down",...,"disabled_at":*,"disabled_reason":"manual",...}]



=== TEST 7: toggle enables it again, and nothing of the past is left
--- talk
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {...}
> POST /upstream/toggle host=10.0.0.1&port=9001&action=disable
< 200 {...}
> POST /upstream/toggle host=10.0.0.1&port=9001&action=enable
< 200 {"addr":"10.0.0.1:9001","enabled":true}
> GET /upstream/status
< 200 [{...,"enabled":true,"is_active":true,"state":"up",...,"disabled_at":null,"disabled_reason":null,...}]



=== TEST 8: to toggle twice is as good as once
--- talk
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {...}
> POST /upstream/toggle host=10.0.0.1&port=9001&action=enable
< 200 {"addr":"10.0.0.1:9001","enabled":true}
> POST /upstream/toggle host=10.0.0.1&port=9001&action=disable
< 200 {"addr":"10.0.0.1:9001","enabled":false}
> POST /upstream/toggle host=10.0.0.1&port=9001&action=disable
< 200 {"addr":"10.0.0.1:9001","enabled":false}



=== TEST 9: refresh and add do not enable a server that was disabled by hand
--- talk
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {...}
> POST /upstream/toggle host=10.0.0.1&port=9001&action=disable
< 200 {...}
> POST /upstream/refresh host=10.0.0.1&port=9001
< 200 {"addr":"10.0.0.1:9001","heartbeat_time":*}
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {...,"enabled":false}
> GET /upstream/status
< 200 [{...,"enabled":false,...,"state":"down",...,"disabled_reason":"manual",...}]



=== TEST 10: refresh is a heartbeat; of a server that is not known it is an error
--- talk
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {...}
> POST /upstream/refresh host=10.0.0.1&port=9001
< 200 {"addr":"10.0.0.1:9001","heartbeat_time":*}
> POST /upstream/refresh host=10.0.0.1&port=9002
< 404 Server not found: 10.0.0.1:9002
> POST /upstream/refresh host=10.0.0.2&port=9001
< 404 Server not found: 10.0.0.2:9001
> GET /upstream/status
< 200 {"code":200,...,"data":[{"addr":"10.0.0.1:9001",...}],"total":1,...}



=== TEST 11: weight sets the weight, down to 0 for no new requests
--- talk
> POST /upstream/add host=10.0.0.1&port=9001&max_conns=9
< 200 {...}
> POST /upstream/weight host=10.0.0.1&port=9001&weight=65535
< 200 {"addr":"10.0.0.1:9001","weight":65535}
> POST /upstream/weight host=10.0.0.1&port=9001&weight=0
< 200 {"addr":"10.0.0.1:9001","weight":0}
> GET /upstream/status
< 200 [{...,"weight":0,"max_conns":9,"enabled":true,"is_active":true,"state":"up",...}]



=== TEST 12: drain lets a server finish, and says with how many requests
--- talk
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {...}
> POST /upstream/drain host=10.0.0.1&port=9001
< 200 {"addr":"10.0.0.1:9001","connections":0}
> GET /upstream/status
< 200 [{...,"enabled":true,...,"state":"draining",...}]



=== TEST 13: enable ends a drain, a heartbeat does not
--- talk
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {...}
> POST /upstream/drain host=10.0.0.1&port=9001
< 200 {...}
> POST /upstream/refresh host=10.0.0.1&port=9001
< 200 {...}
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {...}
> GET /upstream/status
< 200 [{...,"state":"draining",...}]
> POST /upstream/toggle host=10.0.0.1&port=9001&action=enable
< 200 {"addr":"10.0.0.1:9001","enabled":true}
> GET /upstream/status
< 200 [{...,"state":"up",...}]



=== TEST 14: add of a known server changes the parameters given, and no others
--- talk
> POST /upstream/add host=10.0.0.1&port=9001&weight=5&max_conns=20
< 200 {...,"weight":5,"max_conns":20,"enabled":true}
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {...,"weight":5,"max_conns":20,"enabled":true}
> POST /upstream/add host=10.0.0.1&port=9001&weight=6
< 200 {...,"weight":6,"max_conns":20,"enabled":true}
> POST /upstream/add host=10.0.0.1&port=9001&max_conns=21
< 200 {...,"weight":6,"max_conns":21,"enabled":true}
> GET /upstream/status
< 200 {"code":200,...,"data":[{"addr":"10.0.0.1:9001",...}],"total":1,...}



=== TEST 15: add of a known server under on_duplicate reject is refused and changes nothing
--- http_config
registry main 128k { on_duplicate reject; }
upstream backend { registry main; }
--- talk
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {...}
> POST /upstream/add host=10.0.0.1&port=9001&weight=2&max_conns=3
< 409 Server already exists: 10.0.0.1:9001
> GET /upstream/status
< 200 [{...,"weight":1,"max_conns":1000,...}]
> POST /upstream/remove host=10.0.0.1&port=9001
< 200 {...}
> POST /upstream/add host=10.0.0.1&port=9001&weight=2
< 200 {...,"weight":2,...}



=== TEST 16: a static member can't be removed; it can be disabled, drained and weighed
--- http_config
registry main 128k { }
upstream backend { registry main; server 10.0.0.9:80 weight=4; }
--- talk
> POST /upstream/remove host=10.0.0.9&port=80
< 409 Server is defined in the configuration and can't be removed: 10.0.0.9:80; disable it instead
> POST /upstream/toggle host=10.0.0.9&port=80&action=disable
< 200 {"addr":"10.0.0.9:80","enabled":false}
> POST /upstream/drain host=10.0.0.9&port=80
< 200 {"addr":"10.0.0.9:80","connections":0}
> POST /upstream/weight host=10.0.0.9&port=80&weight=2
< 200 {"addr":"10.0.0.9:80","weight":2}
> GET /upstream/status
< 200 [{"addr":"10.0.0.9:80",...,"weight":2,...,"enabled":false,...,"state":"down",...}]



=== TEST 17: every endpoint for one server says so when there is none
--- talk
> POST /upstream/remove host=10.0.0.1&port=9001
< 404 Server not found: 10.0.0.1:9001
> POST /upstream/toggle host=10.0.0.1&port=9001&action=enable
< 404 Server not found: 10.0.0.1:9001
> POST /upstream/refresh host=10.0.0.1&port=9001
< 404 Server not found: 10.0.0.1:9001
> POST /upstream/weight host=10.0.0.1&port=9001&weight=1
< 404 Server not found: 10.0.0.1:9001
> POST /upstream/drain host=10.0.0.1&port=9001
< 404 Server not found: 10.0.0.1:9001
> POST /upstream/drain host=2001:db8::1&port=9001
< 404 Server not found: [2001:db8::1]:9001
> GET /upstream/status
< 200 []



=== TEST 18: health counts, and is healthy while a server may be chosen
--- talk
> GET /upstream/health
< 200 {"code":200,"message":"Success","status":"unhealthy","data":{"total_servers":0,"enabled_servers":0,"active_servers":0,"expired_servers":0}}
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {...}
> POST /upstream/add host=10.0.0.2&port=9001
< 200 {...}
> GET /upstream/health
< 200 {"code":200,"message":"Success","status":"healthy","data":{"total_servers":2,"enabled_servers":2,"active_servers":2,"expired_servers":0}}
> POST /upstream/toggle host=10.0.0.1&port=9001&action=disable
< 200 {...}
> GET /upstream/health
< 200 {"code":200,"message":"Success","status":"healthy","data":{"total_servers":2,"enabled_servers":1,"active_servers":1,"expired_servers":0}}
> POST /upstream/toggle host=10.0.0.2&port=9001&action=disable
< 200 {...}
> GET /upstream/health
< 200 {"code":200,"message":"Success","status":"unhealthy","data":{"total_servers":2,"enabled_servers":0,"active_servers":0,"expired_servers":0}}



=== TEST 19: servers that only drain or weigh nothing make no healthy namespace
--- talk
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {...}
> POST /upstream/drain host=10.0.0.1&port=9001
< 200 {...}
> GET /upstream/health
< 200 {"code":200,"message":"Success","status":"unhealthy","data":{"total_servers":1,"enabled_servers":1,...}}
> POST /upstream/add host=10.0.0.2&port=9001&weight=0
< 200 {...}
> GET /upstream/health
< 200 {"code":200,"message":"Success","status":"unhealthy","data":{"total_servers":2,"enabled_servers":2,...}}
> POST /upstream/weight host=10.0.0.2&port=9001&weight=1
< 200 {...}
> GET /upstream/health
< 200 {"code":200,"message":"Success","status":"healthy","data":{"total_servers":2,"enabled_servers":2,...}}



=== TEST 20: health?ready is 503 while the namespace is unhealthy
--- talk
> GET /upstream/health?ready
< 503 {"code":503,...,"status":"unhealthy","data":{"total_servers":0,"enabled_servers":0,"active_servers":0,"expired_servers":0}}
> GET /upstream/health?ready=1
< 503 {"code":503,...,"status":"unhealthy",...}
> HEAD /upstream/health?ready
< 503
> POST /upstream/add port=9001
< 200 {...}
> GET /upstream/health?ready
< 200 {"code":200,"message":"Success","status":"healthy","data":{"total_servers":1,"enabled_servers":1,"active_servers":1,"expired_servers":0}}
> HEAD /upstream/health?ready
< 200



=== TEST 21: a silent server is expired at once, whatever the timer does
--- http_config
registry main 128k { heartbeat_ttl 10ms; cleanup_interval 1h; }
upstream backend { registry main; }
--- wait: 0.05
--- talk
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {...}
> GET /upstream/status
< 200 [{...,"enabled":true,"is_active":false,"state":"expired",...}]
> GET /upstream/health
< 200 {"code":200,"message":"Success","status":"unhealthy","data":{"total_servers":1,"enabled_servers":1,"active_servers":0,"expired_servers":1}}
> GET /upstream/health?ready
< 503 {"code":503,...}



=== TEST 22: cleanup disables the expired, and counts what it did
--- http_config
registry main 128k { heartbeat_ttl 10ms; cleanup_interval 1h; }
upstream backend { registry main; }
--- wait: 0.05
--- talk
> POST /upstream/cleanup
< 200 {"expired_count":0,"disabled_count":0,"removed_count":0}
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {...}
> POST /upstream/cleanup
< 200 {"expired_count":1,"disabled_count":1,"removed_count":0}
> GET /upstream/cleanup
< 200 {"expired_count":1,"disabled_count":0,"removed_count":0}
> GET /upstream/status
< 200 [{...,"enabled":false,"is_active":false,"state":"expired",...,"disabled_at":*,"disabled_reason":"heartbeat_timeout",...}]



=== TEST 23: cleanup removes the expired under on_expire remove, by GET too
--- http_config
registry main 128k { heartbeat_ttl 10ms; cleanup_interval 1h; on_expire remove; }
upstream backend { registry main; }
--- wait: 0.05
--- talk
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {...}
> POST /upstream/add host=10.0.0.1&port=9002
< 200 {...}
> GET /upstream/cleanup
< 200 {"expired_count":2,"disabled_count":0,"removed_count":2}
> GET /upstream/status
< 200 []



=== TEST 24: cleanup forgets those silent for longer than remove_after, but none disabled by hand
--- http_config
registry main 128k { heartbeat_ttl 10ms; cleanup_interval 1h; remove_after 20ms; }
upstream backend { registry main; }
--- wait: 0.05
--- talk
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {...}
> POST /upstream/add host=10.0.0.1&port=9002
< 200 {...}
> POST /upstream/toggle host=10.0.0.1&port=9002&action=disable
< 200 {...}
> POST /upstream/cleanup
< 200 {"expired_count":1,"disabled_count":0,"removed_count":1}
> GET /upstream/status
< 200 {"code":200,...,"data":[{"addr":"10.0.0.1:9002",...,"state":"down",...}],"total":1,...}



=== TEST 25: cleanup, reset, health and status mean one namespace
--- http_config
registry main 128k { heartbeat_ttl 10ms; cleanup_interval 1h; on_expire remove; }
upstream a { registry main; }
upstream b { registry main; }
--- wait: 0.05
--- talk
> POST /upstream/add ns=a&port=9001
< 200 {...}
> POST /upstream/add ns=b&port=9002
< 200 {...}
> POST /upstream/reset ns=a
< 200 {"servers_reset":1}
> POST /upstream/cleanup ns=a
< 200 {"expired_count":1,"disabled_count":0,"removed_count":1}
> GET /upstream/health?ns=a
< 200 {"code":200,...,"data":{"total_servers":0,...}}
> GET /upstream/health?ns=b
< 200 {"code":200,...,"data":{"total_servers":1,...}}
> GET /upstream/status?ns=b
< 200 {"code":200,...,"data":[{"addr":"127.0.0.1:9002",...}],"total":1,...}



=== TEST 26: reset clears requests, fails and failure marks
--- http_config
registry main 128k { }
upstream backend { registry main; }
--- config
location /upstream/ { registry_api main; }
location / { proxy_pass http://backend; }
--- talk eval
"> POST /upstream/add port=$ENV{TEST_NGINX_PORT_1}
< 200 {...}
> POST /upstream/add port=$ENV{TEST_NGINX_PORT_2}
< 200 {...}
> GET /nobody-listens-at-either
< 502 ...
+ Content-Type: text/html
" . '
> GET /upstream/status
< 200 [{...,"state":"unhealthy",...,"requests":1,"fails":1...},{...,"state":"unhealthy",...,"requests":1,"fails":1...}]
> POST /upstream/reset
< 200 {"servers_reset":2}
> GET /upstream/status
< 200 [{...,"state":"up",...,"requests":0,"fails":0...},{...,"state":"up",...,"requests":0,"fails":0...}]
> POST /upstream/reset
< 200 {"servers_reset":2}
'



=== TEST 27: reset of none
--- talk
> POST /upstream/reset
< 200 {"servers_reset":0}



=== TEST 28: each reply that carries a state that changes must not be cached
--- talk
> GET /upstream/status
< 200 []
+ Cache-Control: no-store
