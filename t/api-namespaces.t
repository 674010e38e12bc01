# Which namespace a request means: the one it names (ns), the location's, or the zone's only one.

use FindBin;
use Test::Nginx::Socket;
require "$FindBin::Bin/api-talk.pl";

plan tests => 300;

run_tests();

__DATA__

=== TEST 1: ns in the query string, a form and JSON
--- http_config
registry main 128k { }
upstream a { registry main; }
upstream b { registry main; }
--- talk
> POST /upstream/add?ns=a&port=1
< 200 {...}
> POST /upstream/add ns=b&port=2
< 200 {...}
> POST /upstream/add {"ns":"b","port":3}
< 200 {...}
> GET /upstream/status?ns=a
< 200 [{"addr":"127.0.0.1:1",...,"namespace":"a",...}]
> GET /upstream/status?ns=b
< 200 [{"addr":"127.0.0.1:2",...,"namespace":"b",...},{"addr":"127.0.0.1:3",...,"namespace":"b",...}]



=== TEST 2: the zone's only namespace needs not be named
--- talk
> POST /upstream/add port=1
< 200 {...}
> GET /upstream/status
< 200 [{...,"namespace":"backend",...}]
> POST /upstream/remove port=1
< 200 {...}
> GET /upstream/status?ns=backend
< 200 []



=== TEST 3: among several it must be
--- http_config
registry main 128k { }
upstream a { registry main; }
upstream b { registry main; }
--- talk
> POST /upstream/add port=1
< 400 Parameter "ns" is required: the registry has 2 namespaces, not one
> POST /upstream/remove port=1
< 400 Parameter "ns" is required: the registry has 2 namespaces, not one
> GET /upstream/status
< 400 Parameter "ns" is required: the registry has 2 namespaces, not one
> GET /upstream/health
< 400 Parameter "ns" is required: the registry has 2 namespaces, not one
> POST /upstream/reset
< 400 Parameter "ns" is required: the registry has 2 namespaces, not one
> POST /upstream/cleanup
< 400 Parameter "ns" is required: the registry has 2 namespaces, not one
> GET /upstream/status?ns=a
< 200 []



=== TEST 4: and where there is none yet
--- http_config
registry main 128k { }
--- talk
> POST /upstream/add port=1
< 400 Parameter "ns" is required: the registry has 0 namespaces, not one
> GET /upstream/status
< 400 Parameter "ns" is required: the registry has 0 namespaces, not one



=== TEST 5: a namespace comes with its first server and goes with its last
--- http_config
registry main 128k { }
--- talk
> GET /upstream/status?ns=web
< 404 Namespace not found: web
> GET /upstream/health?ns=web
< 404 Namespace not found: web
> POST /upstream/refresh ns=web&port=1
< 404 Server not found: 127.0.0.1:1
> POST /upstream/add ns=web&port=1
< 200 {...}
> POST /upstream/add ns=web&port=2
< 200 {...}
> POST /upstream/remove ns=web&port=1
< 200 {...}
> GET /upstream/status?ns=web
< 200 [{"addr":"127.0.0.1:2",...,"namespace":"web",...}]
> GET /upstream/status
< 200 [{...,"namespace":"web",...}]
> POST /upstream/remove ns=web&port=2
< 200 {...}
> GET /upstream/status?ns=web
< 404 Namespace not found: web
> POST /upstream/reset ns=web
< 404 Namespace not found: web
> POST /upstream/cleanup ns=web
< 404 Namespace not found: web



=== TEST 6: nothing but add makes one
--- http_config
registry main 128k { }
--- talk
> POST /upstream/refresh ns=web&port=1
< 404 Server not found: 127.0.0.1:1
> POST /upstream/toggle ns=web&port=1&action=enable
< 404 Server not found: 127.0.0.1:1
> POST /upstream/weight ns=web&port=1&weight=1
< 404 Server not found: 127.0.0.1:1
> POST /upstream/add ns=web&port=0
< 400 {"code":400,"message":"..."}
> POST /upstream/add ns=web&port=1&weight=x
< 400 {"code":400,"message":"..."}
> GET /upstream/status?ns=web
< 404 Namespace not found: web



=== TEST 7: those that the configuration names are there from the start and stay
--- http_config
registry main 128k { }
upstream a { registry main; }
upstream x { registry main namespace=b; }
upstream y { registry main namespace=$arg_service; }
--- config
location /upstream/ { registry_api main; }
location /c/ { registry_api main namespace=c; }
location /d/ { registry_api main namespace=$arg_d; }
--- talk
> GET /upstream/status?ns=a
< 200 []
> GET /upstream/status?ns=b
< 200 []
> GET /upstream/status?ns=c
< 200 []
> GET /upstream/status?ns=x
< 404 Namespace not found: x
> GET /upstream/status?ns=y
< 404 Namespace not found: y
> GET /upstream/status
< 400 Parameter "ns" is required: the registry has 3 namespaces, not one
> POST /upstream/add ns=a&port=1
< 200 {...}
> POST /upstream/remove ns=a&port=1
< 200 {...}
> GET /upstream/status?ns=a
< 200 []



=== TEST 8: a name is 1 to 64 letters, digits, dots, underlines and hyphens
--- talk eval
'> POST /upstream/add ns=A-z_0.9&port=1
< 200 {...}
> GET /upstream/status?ns=A-z_0.9
< 200 [{...,"namespace":"A-z_0.9",...}]
> GET /upstream/status?ns=a-z_0.9
< 404 Namespace not found: a-z_0.9
> POST /upstream/add ns=' . 'n' x 64 . '&port=1
< 200 {...}
> POST /upstream/add ns=' . 'n' x 65 . '&port=1
< 400 Parameter "ns" must be 1 to 64 letters, digits, ".", "_" or "-"
> POST /upstream/add ns=&port=1
< 400 Parameter "ns" must be 1 to 64 letters, digits, ".", "_" or "-"
> GET /upstream/status?ns
< 400 Parameter "ns" must be 1 to 64 letters, digits, ".", "_" or "-"
> POST /upstream/add ns=a+b&port=1
< 400 Parameter "ns" must be 1 to 64 letters, digits, ".", "_" or "-"
> POST /upstream/add ns=a/b&port=1
< 400 Parameter "ns" must be 1 to 64 letters, digits, ".", "_" or "-"
> POST /upstream/add ns=a:b&port=1
< 400 Parameter "ns" must be 1 to 64 letters, digits, ".", "_" or "-"
> POST /upstream/add ns=a%00&port=1
< 400 Parameter "ns" must be 1 to 64 letters, digits, ".", "_" or "-"
> POST /upstream/add ns=a%0A&port=1
< 400 Parameter "ns" must be 1 to 64 letters, digits, ".", "_" or "-"
> POST /upstream/add ns=%FF&port=1
< 400 Parameter "ns" must be 1 to 64 letters, digits, ".", "_" or "-"
> POST /upstream/add ns=%C3%A4&port=1
< 400 Parameter "ns" must be 1 to 64 letters, digits, ".", "_" or "-"
> POST /upstream/add ns="a"&port=1
< 400 Parameter "ns" must be 1 to 64 letters, digits, ".", "_" or "-"
'



=== TEST 9: a location's namespace needs not be named, and may be
--- http_config
registry main 128k { }
upstream a { registry main; }
upstream b { registry main; }
--- config
location /upstream/ { registry_api main; }
location /a/ { registry_api main namespace=a; }
--- talk
> POST /a/add port=1
< 200 {...}
> POST /a/refresh ns=a&port=1
< 200 {...}
> GET /a/status
< 200 [{...,"namespace":"a",...}]
> GET /upstream/status?ns=b
< 200 []



=== TEST 10: a location's namespace binds
--- http_config
registry main 128k { }
upstream a { registry main; }
upstream b { registry main; }
--- config
location /upstream/ { registry_api main; }
location /a/ { registry_api main namespace=a; }
--- talk
> POST /upstream/add ns=b&port=1
< 200 {...}
> POST /a/add ns=b&port=2
< 403 This location is for the namespace "a" only
> POST /a/remove?ns=b port=1
< 403 This location is for the namespace "a" only
> POST /a/toggle {"ns":"b","port":1,"action":"disable"}
< 403 This location is for the namespace "a" only
> POST /a/remove ns=A&port=1
< 403 This location is for the namespace "a" only
> GET /a/status?ns=b
< 403 This location is for the namespace "a" only
> GET /a/health?ns=b
< 403 This location is for the namespace "a" only
> POST /a/reset ns=b
< 403 This location is for the namespace "a" only
> POST /a/cleanup ns=b
< 403 This location is for the namespace "a" only
> POST /a/remove port=1
< 404 Server not found: 127.0.0.1:1
> GET /upstream/status?ns=b
< 200 [{"addr":"127.0.0.1:1",...,"enabled":true,...}]



=== TEST 11: a location's namespace with variables is another for each request
--- http_config
registry main 128k { }
--- config
location /upstream/ { registry_api main; }
location ~ ^/services/(?<service>[^/]+)/ { registry_api main namespace=svc-$service; }
--- talk
> POST /services/a/add port=1
< 200 {...}
> POST /services/b/add port=2
< 200 {...}
> GET /services/a/status
< 200 [{"addr":"127.0.0.1:1",...,"namespace":"svc-a",...}]
> GET /upstream/status?ns=svc-b
< 200 [{"addr":"127.0.0.1:2",...,"namespace":"svc-b",...}]
> POST /services/a/remove ns=svc-a&port=1
< 200 {...}
> POST /services/a/remove ns=svc-b&port=2
< 403 This location is for the namespace "svc-a" only
> GET /services/a/status
< 404 Namespace not found: svc-a



=== TEST 12: it may come from the query string, which then holds a name that the API does not know
--- http_config
registry main 128k { }
--- config
location /upstream/ { registry_api main; }
location /by-arg/ { registry_api main namespace=$arg_service allow_get; }
--- talk
> POST /by-arg/add?service=web port=1
< 200 {...}
> GET /by-arg/refresh?service=web&port=1
< 200 {...}
> GET /by-arg/status?service=web
< 200 [{...,"namespace":"web",...}]
> GET /by-arg/status?service=app
< 404 Namespace not found: app



=== TEST 13: a variable that makes no name
--- http_config
registry main 128k { }
upstream backend { registry main; }
--- config
location /upstream/ { registry_api main; }
location /by-header/ { registry_api main namespace=$http_x_service; }
--- talk
> POST /by-header/add port=1
< 400 The namespace that this location makes of the request must be 1 to 64 letters, digits, ".", "_" or "-"
> POST /by-header/add port=1&ns=backend
+ X-Service: a b
< 400 The namespace that this location makes of the request must be 1 to 64 letters, digits, ".", "_" or "-"
> GET /by-header/status
+ X-Service: ../a
< 400 The namespace that this location makes of the request must be 1 to 64 letters, digits, ".", "_" or "-"
> GET /by-header/status
+ X-Service: backend
< 200 []



=== TEST 14: two registries know nothing of each other
--- http_config
registry one 128k { }
registry two 128k { }
upstream a { registry one namespace=web; }
upstream b { registry two namespace=web; }
--- config
location /one/ { registry_api one; }
location /two/ { registry_api two; }
--- talk
> POST /one/add port=1
< 200 {...}
> POST /two/add port=2
< 200 {...}
> GET /one/status
< 200 [{"addr":"127.0.0.1:1",...,"namespace":"web",...}]
> GET /two/status
< 200 [{"addr":"127.0.0.1:2",...,"namespace":"web",...}]
> POST /one/remove port=2
< 404 Server not found: 127.0.0.1:2



=== TEST 15: a request that is passed on makes no namespace
--- http_config
registry main 128k { }
upstream by_name { registry main namespace=$arg_service; }
--- config
location /upstream/ { registry_api main; }
location / { proxy_pass http://by_name; }
--- talk
> GET /?service=web
< 502 ...
+ Content-Type: text/html
> GET /?service=
< 502 ...
+ Content-Type: text/html
> GET /?service=a/b
< 502 ...
+ Content-Type: text/html
> GET /upstream/status?ns=web
< 404 Namespace not found: web
> GET /upstream/status
< 400 Parameter "ns" is required: the registry has 0 namespaces, not one
