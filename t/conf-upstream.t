# registry and registry_balance in an upstream, and its server lines: what works, and what is
# refused, with file and line.

use FindBin;
use Test::Nginx::Socket;
require "$FindBin::Bin/conf-file.pl";

plan tests => 160;

run_tests();

__DATA__

=== TEST 1: an upstream needs no server line; its namespace is its name
--- conf
registry main 128k { }
upstream backend-1.example_com { registry main; }
--- talk
> GET /upstream/status?ns=backend-1.example_com
< 200 []



=== TEST 2: or another
--- conf
registry main 128k { }
upstream backend { registry main namespace=web; }
--- talk
> GET /upstream/status?ns=web
< 200 []
> GET /upstream/status?ns=backend
< 404 Namespace not found: backend



=== TEST 3: of several upstreams on one namespace, each passes to its servers
--- conf
registry main 128k { }
upstream a { registry main namespace=web; }
upstream b { registry main namespace=web; registry_balance round_robin; }
upstream web { registry main; }
server { listen 127.0.0.1:$TEST_NGINX_PORT_1; location / { return 200 "$uri\n"; } }
--- config
location /upstream/ { registry_api main; }
location /a { proxy_pass http://a; }
location /b { proxy_pass http://b; }
location /c { proxy_pass http://web; }
--- talk eval
"> POST /upstream/add port=$ENV{TEST_NGINX_PORT_1}\n" . '< 200 {...}
> GET /a
< 200 ...
+ Content-Type: text/plain
> GET /b
< 200 ...
+ Content-Type: text/plain
> GET /c
< 200 ...
+ Content-Type: text/plain
> GET /upstream/status
< 200 [{...,"namespace":"web",...,"requests":3,...}]
'



=== TEST 4: a namespace of variables, another for each request
--- conf
registry main 128k { }
upstream by_name { registry main namespace=svc-$arg_service; }
server { listen 127.0.0.1:$TEST_NGINX_PORT_1; location / { return 200 "one\n"; } }
--- config
location /upstream/ { registry_api main; }
location / { proxy_pass http://by_name; }
--- talk eval
"> POST /upstream/add ns=svc-a&port=$ENV{TEST_NGINX_PORT_1}\n" . '< 200 {...}
> GET /?service=a
< 200 ...
+ Content-Type: text/plain
> GET /?service=b
< 502 ...
+ Content-Type: text/html
> GET /upstream/status?ns=svc-a
< 200 [{...,"requests":1,...}]
'



=== TEST 5: a variable in braces
--- conf
registry main 128k { }
upstream by_name { registry main "namespace=${arg_service}"; }
--- talk
> GET /upstream/status
< 400 Parameter "ns" is required: the registry has 0 namespaces, not one



=== TEST 6: every registry_balance
--- conf
registry main 128k { }
upstream a { registry main; registry_balance least_conn; }
upstream b { registry main; registry_balance round_robin; }
upstream c { registry_balance round_robin; registry main; }
upstream d { registry main; registry_balance random; }
upstream e { registry main; registry_balance random two; }
upstream f { registry main; registry_balance random two least_conn; }
upstream g { registry main; registry_balance ip_hash; }
upstream h { registry main; registry_balance hash $request_uri consistent; }
upstream i { registry main; registry_balance hash "a $arg_a, b $arg_b"; }
--- talk
> GET /upstream/status?ns=c
< 200 []



=== TEST 7: server lines are members, with all that stock round robin knows
--- conf
registry main 128k { }
upstream backend {
    registry main;
    server 10.0.0.1:80;
    server 10.0.0.2:81 weight=65535 max_conns=7 max_fails=3 fail_timeout=1m;
    server 10.0.0.3 down;
    server 10.0.0.4 backup;
    server [2001:db8::1]:82 max_fails=0;
    server unix:/tmp/no.sock;
}
--- talk
> GET /upstream/status
< 200 [{"addr":"10.0.0.1:80","host":"10.0.0.1","port":80,"namespace":"backend","connections":0,"weight":1,"max_conns":0,"enabled":true,"is_active":true,"state":"up",...},{"addr":"10.0.0.2:81",...,"weight":65535,"max_conns":7,...},{"addr":"10.0.0.3:80",...,"enabled":false,...,"state":"down",...,"disabled_at":*,"disabled_reason":"configuration",...},{"addr":"10.0.0.4:80",...,"state":"up",...,"backup":true...},{"addr":"[2001:db8::1]:82",...},{"addr":"unix:/tmp/no.sock",...}]



=== TEST 8: before registry too
--- conf
registry main 128k { }
upstream backend {
    server 10.0.0.1:80 weight=3 backup;
    registry main;
    server 10.0.0.2:80 weight=4;
}
--- talk
> GET /upstream/status
< 200 [{"addr":"10.0.0.1:80",...,"weight":3,...},{"addr":"10.0.0.2:80",...,"weight":4,...}]



=== TEST 9: they never expire, and stand beside those that register
--- conf
registry main 128k { heartbeat_ttl 10ms; cleanup_interval 20ms; on_expire remove; }
upstream backend { registry main; server 10.0.0.1:80; }
--- wait: 0.1
--- talk
> POST /upstream/add host=10.0.0.2&port=80
< 200 {...}
> GET /upstream/status
< 200 [{"addr":"10.0.0.1:80",...,"is_active":true,"state":"up",...}]



=== TEST 10: an address with a mapped IPv4 address is the IPv4 address
--- conf
registry main 128k { }
upstream backend { registry main; server [::ffff:10.0.0.1]:80; }
--- talk
> GET /upstream/status
< 200 [{"addr":"10.0.0.1:80","host":"10.0.0.1",...}]



=== TEST 11: of two upstreams with one namespace and one server line the first counts
--- conf
registry main 128k { }
upstream a { registry main namespace=web; server 10.0.0.1:80 weight=2; }
upstream b { registry main namespace=web; server 10.0.0.1:80 weight=5; server 10.0.0.2:80; }
--- talk
> GET /upstream/status
< 200 [{"addr":"10.0.0.1:80",...,"weight":2,...},{"addr":"10.0.0.2:80",...}]



=== TEST 12: with the directives that nginx has for an upstream
--- conf
registry main 128k { }
upstream backend {
    zone backend 64k;
    registry main;
    keepalive 4;
    keepalive_requests 10;
    keepalive_timeout 10s;
    keepalive_time 1h;
}
upstream other { registry main; zone other 64k; keepalive 1; }
--- talk
> GET /upstream/status?ns=backend
< 200 []
--- no_error_log
load balancing method redefined



=== TEST 13: upstreams without registry are what they were
--- conf
registry main 128k { }
upstream stock { least_conn; server 127.0.0.1:$TEST_NGINX_PORT_1; }
server { listen 127.0.0.1:$TEST_NGINX_PORT_1; location / { return 200 "one\n"; } }
--- config
location / { proxy_pass http://stock; }
--- talk
> GET /
< 200 ...
+ Content-Type: text/plain



=== TEST 14: after keepalive it takes its place, as any method of nginx, and nginx warns
--- conf
registry main 128k { }
upstream backend {
    keepalive 4;
    registry main;
}
--- warned: load balancing method redefined in FILE:4
--- talk
> GET /upstream/status
< 200 []



=== TEST 15: after another method too
--- conf
registry main 128k { }
upstream backend {
    least_conn;
    registry main;
}
--- warned: load balancing method redefined in FILE:4
--- talk
> GET /upstream/status
< 200 []



=== TEST 16: least_conn after registry would take its place
--- conf
registry main 128k { }
upstream backend {
    registry main;
    least_conn;
}
--- refused: another load balancing method has taken the place of "registry": ... in FILE:3



=== TEST 17: ip_hash after registry
--- conf
registry main 128k { }
upstream backend { registry main; ip_hash; }
--- refused: another load balancing method has taken the place of "registry": ... in FILE:2



=== TEST 18: hash after registry
--- conf
registry main 128k { }
upstream backend { registry main; hash $uri consistent; }
--- refused: another load balancing method has taken the place of "registry": ... in FILE:2



=== TEST 19: random after registry
--- conf
registry main 128k { }
upstream backend { registry main; server 10.0.0.1; random two least_conn; }
--- refused: another load balancing method has taken the place of "registry": ... in FILE:2



=== TEST 20: a method between registry and keepalive
--- conf
registry main 128k { }
upstream backend { registry main; least_conn; keepalive 4; }
--- refused: another load balancing method has taken the place of "registry": ... in FILE:2



=== TEST 21: a registry that there is not names those that there are
--- conf
registry main 128k { }
registry other 128k { }
upstream backend {
    registry mian;
}
--- refused: unknown registry "mian"; there are "main", "other" in FILE:4



=== TEST 22: and how to make one when there is none
--- conf
upstream backend {
    registry main;
}
--- refused: unknown registry "main"; declare one with: registry NAME SIZE { } in FILE:2



=== TEST 23: a zone of another module is no registry
--- conf
limit_req_zone $binary_remote_addr zone=main:64k rate=1r/s;
upstream backend { registry main; }
--- refused: unknown registry "main"; ... in FILE:2



=== TEST 24: registry twice
--- conf
registry main 128k { }
registry other 128k { }
upstream backend {
    registry main;
    registry other;
}
--- refused: "registry" directive is duplicate in FILE:5



=== TEST 25: registry without a name
--- conf
upstream backend {
    registry;
}
--- refused: invalid number of arguments in "registry" directive in FILE:2



=== TEST 26: registry with too many words
--- conf
registry main 128k { }
upstream backend { registry main namespace=a namespace=b; }
--- refused: invalid number of arguments in "registry" directive in FILE:2



=== TEST 27: a parameter that is none
--- conf
registry main 128k { }
upstream backend {
    registry main ns=web;
}
--- refused: invalid parameter "ns=web": it may be namespace=NAME in FILE:3



=== TEST 28: an empty namespace
--- conf
registry main 128k { }
upstream backend { registry main namespace=; }
--- refused: invalid namespace "": use 1 to 64 letters, digits, ".", "_" or "-", or a variable in FILE:2



=== TEST 29: a namespace with a space
--- conf
registry main 128k { }
upstream backend { registry main "namespace=a b"; }
--- refused: invalid namespace "a b": use 1 to 64 letters, digits, ".", "_" or "-", or a variable in FILE:2



=== TEST 30: a namespace with a slash
--- conf
registry main 128k { }
upstream backend { registry main namespace=a/b; }
--- refused: invalid namespace "a/b": use 1 to 64 letters, digits, ".", "_" or "-", or a variable in FILE:2



=== TEST 31: a namespace of 65 characters
--- conf eval
"registry main 128k { }\nupstream backend { registry main namespace=" . 'a' x 65 . "; }\n"
--- refused: invalid namespace "aaa...": use 1 to 64 letters, digits, ".", "_" or "-", or a variable in FILE:2



=== TEST 32: a variable that there is not
--- conf
registry main 128k { }
upstream backend { registry main namespace=$no_such_variable; }
--- refused: unknown "no_such_variable" variable...



=== TEST 33: a dollar that is no variable
--- conf
registry main 128k { }
upstream backend { registry main namespace=$; }
--- refused: invalid variable name in FILE:2



=== TEST 34: an upstream whose name can be no namespace
--- conf
registry main 128k { }
upstream back@end {
    registry main;
}
--- refused: the upstream's name "back@end" can't be a namespace, which is 1 to 64 letters, digits, ".", "_" or "-": add namespace=NAME in FILE:3



=== TEST 35: with one of its own it may have any name
--- conf
registry main 128k { }
upstream back@end { registry main namespace=web; }
--- talk
> GET /upstream/status?ns=web
< 200 []



=== TEST 36: registry_balance without registry
--- conf
registry main 128k { }
upstream backend {
    server 10.0.0.1;
    registry_balance least_conn;
}
--- refused: "registry_balance" needs "registry" in its upstream in FILE:4



=== TEST 37: registry_balance twice
--- conf
registry main 128k { }
upstream backend {
    registry main;
    registry_balance least_conn;
    registry_balance least_conn;
}
--- refused: "registry_balance" directive is duplicate in FILE:5



=== TEST 38: a method that is none names those that are
--- conf
registry main 128k { }
upstream backend {
    registry main;
    registry_balance fastest;
}
--- refused: invalid balancing method "fastest": it may be least_conn, least_conn warm, round_robin, random, random two, ip_hash, hash KEY or hash KEY consistent... in FILE:4



=== TEST 39: a method with a word too many
--- conf
registry main 128k { }
upstream backend { registry main; registry_balance round_robin two; }
--- refused: invalid balancing method "round_robin two": it may be least_conn, least_conn warm, round_robin, random, random two, ip_hash, hash KEY or hash KEY consistent... in FILE:2



=== TEST 40: no method
--- conf
registry main 128k { }
upstream backend { registry main; registry_balance; }
--- refused: invalid number of arguments in "registry_balance" directive in FILE:2



=== TEST 41: a weight that the API would not take either
--- conf
registry main 128k { }
upstream backend {
    registry main;
    server 10.0.0.1:80 weight=65536;
}
--- refused: invalid weight=65536 of server 10.0.0.1:80: in an upstream with "registry" it may be 1 to 65535 in FILE:3



=== TEST 42: weight 0, as in nginx
--- conf
registry main 128k { }
upstream backend { registry main; server 10.0.0.1 weight=0; }
--- refused: invalid parameter "weight=0" in FILE:2



=== TEST 43: server lines and a variable namespace
--- conf
registry main 128k { }
upstream backend {
    registry main namespace=$arg_service;
    server 10.0.0.1:80;
}
--- refused: "server" lines and a variable namespace can't be together in one upstream: give the registry a fixed namespace or remove server 10.0.0.1:80 in FILE:3



=== TEST 44: the server line may come first
--- conf
registry main 128k { }
upstream backend {
    server 10.0.0.1:80 down;
    registry main namespace=a-$arg_service;
}
--- refused: "server" lines and a variable namespace can't be together in one upstream: give the registry a fixed namespace or remove server 10.0.0.1:80 in FILE:4



=== TEST 45: resolve, where nginx has it, after registry
--- skip_nginx: 2: < 1.27.3
--- conf
registry main 128k { }
resolver 127.0.0.1;
upstream backend {
    zone backend 64k;
    registry main;
    server localhost:80 resolve;
}
--- refused: load balancing method does not support resolving names at run time in upstream "backend" in FILE:3



=== TEST 46: resolve, where nginx has it, before registry, in an upstream without a zone
--- skip_nginx: 2: < 1.27.3
--- conf
registry main 128k { }
resolver 127.0.0.1;
upstream backend {
    server localhost:80 resolve;
    registry main;
}
--- refused: resolving names at run time requires upstream "backend" in FILE:3 to be in shared memory



=== TEST 47: resolve, where nginx has it not
--- skip_nginx: 2: >= 1.27.3
--- conf
registry main 128k { }
upstream backend {
    registry main;
    server localhost:80 resolve;
}
--- refused: invalid parameter "resolve" in FILE:4



=== TEST 48: a parameter of a server line that there is not
--- conf
registry main 128k { }
upstream backend { registry main; server 10.0.0.1 speed=5; }
--- refused: invalid parameter "speed=5" in FILE:2



=== TEST 49: not in http, a server or a location
--- conf
registry_balance least_conn;
--- refused: "registry_balance" directive is not allowed here in FILE:1



=== TEST 50: registry ZONE in a server
--- conf
registry main 128k { }
server {
    registry main;
}
--- refused: "registry" directive is not allowed here in FILE:3



=== TEST 51: registry_balance in a location
--- conf
server { location / { registry_balance least_conn; } }
--- refused: "registry_balance" directive is not allowed here in FILE:1



=== TEST 52: the semicolon left out
--- conf
registry main 128k { }
upstream backend {
    registry main
}
--- refused: unexpected "}" in FILE:4



=== TEST 53: random of another number
--- conf
registry main 128k { }
upstream backend { registry main; registry_balance random three; }
--- refused: invalid parameter "three" of "random": it may be two in FILE:2



=== TEST 54: random two by what there is not
--- conf
registry main 128k { }
upstream backend { registry main; registry_balance random two least_time=header; }
--- refused: invalid parameter "least_time=header" of "random two": it may be least_conn in FILE:2



=== TEST 55: hash without a key
--- conf
registry main 128k { }
upstream backend { registry main; registry_balance hash; }
--- refused: "registry_balance hash" needs a key: write hash KEY or hash KEY consistent in FILE:2



=== TEST 56: consistent misspelt
--- conf
registry main 128k { }
upstream backend { registry main; registry_balance hash $uri consistant; }
--- refused: invalid parameter "consistant" of "hash": it may be consistent in FILE:2



=== TEST 57: a key with a variable that there is not
--- conf
registry main 128k { }
upstream backend { registry main; registry_balance hash $nonsense; }
--- refused: unknown "nonsense" variable
