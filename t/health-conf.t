# health_check in the block registry NAME SIZE { }, and registry_health_check in an upstream: what they take, and what
# they refuse, with file and line.

use FindBin;
use Test::Nginx::Socket;
require "$FindBin::Bin/conf-file.pl";

plan tests => 179;

run_tests();

__DATA__

=== TEST 1: nothing said is checks by HTTP
--- conf
registry main 128k { health_check; }
upstream backend { registry main; }
--- talk
> GET /upstream/status
< 200 []



=== TEST 2: the type alone
--- conf
registry main 128k { health_check type=http; }
upstream backend { registry main; }
--- talk
> GET /upstream/status
< 200 []



=== TEST 3: all that HTTP takes
--- conf
registry main 128k {
    health_check type=http uri=/api/status?deep=1 host=shop.example:8080 port=8081 interval=5s jitter=1s timeout=2s
                 fails=3 passes=2 status=200-299,301,401-403 body~^(ok|fine)$ initial=up mode=always;
}
upstream backend { registry main; }
--- talk
> GET /upstream/status
< 200 []



=== TEST 4: the other values
--- conf
registry main 128k {
    health_check initial=down mode=idle interval=10ms jitter=10ms timeout=1ms fails=1000 passes=1000 status=!500-599 "body!~no such";
}
registry second 128k { health_check interval=1d timeout=1d initial=probe fails=1 passes=1 host=[::1] status=200; }
upstream backend { registry main; }
--- talk
> GET /upstream/status
< 200 []



=== TEST 5: the expression as a word of its own
--- conf
registry main 128k { health_check body ~ "all is well"; }
registry other 128k { health_check body !~ bad; }
upstream backend { registry main; }
--- talk
> GET /upstream/status
< 200 []



=== TEST 6: https
--- conf
registry main 128k { health_check type=https host=shop.example uri=/ping; }
upstream backend { registry main; }
--- talk
> GET /upstream/status
< 200 []



=== TEST 7: tcp
--- conf
registry main 128k { health_check type=tcp port=1; }
upstream backend { registry main; }
--- talk
> GET /upstream/status
< 200 []



=== TEST 8: grpc
--- conf
registry main 128k { health_check type=grpc service=shop.Cart host=shop.example; }
upstream backend { registry main; }
--- talk
> GET /upstream/status
< 200 []



=== TEST 9: off
--- conf
registry main 128k { health_check off; }
upstream backend { registry main; }
--- talk
> GET /upstream/status
< 200 []



=== TEST 10: without a unit a time is in seconds
--- conf
registry main 128k { health_check interval=10 timeout=5; }
upstream backend { registry main; }
--- talk
> GET /upstream/status
< 200 []



=== TEST 11: a type that there is not
--- conf
registry main 128k {
    health_check type=ftp;
}
--- refused: "health_check": invalid parameter "type=ftp": type may be http, https, tcp or grpc in FILE:2



=== TEST 12: capitals
--- conf
registry main 128k {
    health_check type=HTTP;
}
--- refused: "health_check": invalid parameter "type=HTTP": type may be http, https, tcp or grpc in FILE:2



=== TEST 13: a path without a slash
--- conf
registry main 128k {
    health_check uri=status;
}
--- refused: "health_check": invalid parameter "uri=status": uri may be a path such as /api/status, of visible ASCII (others as %XX) and at most 1024 bytes in FILE:2



=== TEST 14: an empty path
--- conf
registry main 128k {
    health_check uri=;
}
--- refused: "health_check": invalid parameter "uri=": uri may be a path such as /api/status, of visible ASCII (others as %XX) and at most 1024 bytes in FILE:2



=== TEST 15: a whole URL
--- conf
registry main 128k {
    health_check uri=http://a/;
}
--- refused: "health_check": invalid parameter "uri=http://a/": uri may be a path such as /api/status, of visible ASCII (others as %XX) and at most 1024 bytes in FILE:2



=== TEST 16: a path with a space
--- conf
registry main 128k {
    health_check "uri=/a b";
}
--- refused: "health_check": invalid parameter "uri=/a b": uri may be a path such as /api/status, of visible ASCII (others as %XX) and at most 1024 bytes in FILE:2



=== TEST 17: a path with a tab
--- conf
registry main 128k {
    health_check "uri=/\tX:1";
}
--- refused: "health_check": invalid parameter "uri=/...X:1": uri may be a path such as /api/status, of visible ASCII (others as %XX) and at most 1024 bytes in FILE:2



=== TEST 18: a path with a fragment
--- conf
registry main 128k {
    health_check uri=/a#b;
}
--- refused: "health_check": invalid parameter "uri=/a#b": uri may be a path such as /api/status, of visible ASCII (others as %XX) and at most 1024 bytes in FILE:2



=== TEST 19: an empty host
--- conf
registry main 128k {
    health_check host=;
}
--- refused: "health_check": invalid parameter "host=": host may be a name or an address, with or without a port in FILE:2



=== TEST 20: a host with a slash
--- conf
registry main 128k {
    health_check host=a/b;
}
--- refused: "health_check": invalid parameter "host=a/b": host may be a name or an address, with or without a port in FILE:2



=== TEST 21: a host with a tab
--- conf
registry main 128k {
    health_check "host=a\tX:1";
}
--- refused: "health_check": invalid parameter "host=a...X:1": host may be a name or an address, with or without a port in FILE:2



=== TEST 22: port 0
--- conf
registry main 128k {
    health_check port=0;
}
--- refused: "health_check": invalid parameter "port=0": port may be a number from 1 to 65535 in FILE:2



=== TEST 23: a port that is too high
--- conf
registry main 128k {
    health_check port=65536;
}
--- refused: "health_check": invalid parameter "port=65536": port may be a number from 1 to 65535 in FILE:2



=== TEST 24: a port by name
--- conf
registry main 128k {
    health_check port=http;
}
--- refused: "health_check": invalid parameter "port=http": port may be a number from 1 to 65535 in FILE:2



=== TEST 25: an interval of 0
--- conf
registry main 128k {
    health_check interval=0;
}
--- refused: "health_check": invalid parameter "interval=0": interval may be a time from 10ms to 1d in FILE:2



=== TEST 26: an interval that is too short
--- conf
registry main 128k {
    health_check interval=9ms;
}
--- refused: "health_check": invalid parameter "interval=9ms": interval may be a time from 10ms to 1d in FILE:2



=== TEST 27: an interval that is too long
--- conf
registry main 128k {
    health_check interval=25h;
}
--- refused: "health_check": invalid parameter "interval=25h": interval may be a time from 10ms to 1d in FILE:2



=== TEST 28: an interval that is no time
--- conf
registry main 128k {
    health_check interval=soon;
}
--- refused: "health_check": invalid parameter "interval=soon": interval may be a time from 10ms to 1d in FILE:2



=== TEST 29: a negative interval
--- conf
registry main 128k {
    health_check interval=-1s;
}
--- refused: "health_check": invalid parameter "interval=-1s": interval may be a time from 10ms to 1d in FILE:2



=== TEST 30: jitter that is no time
--- conf
registry main 128k {
    health_check jitter=x;
}
--- refused: "health_check": invalid parameter "jitter=x": jitter may be a time of at most the interval in FILE:2



=== TEST 31: jitter that is longer than the interval
--- conf
registry main 128k {
    health_check jitter=6s;
}
--- refused: "health_check": invalid parameter "jitter=6s": jitter may be a time of at most the interval in FILE:2



=== TEST 32: jitter before an interval that is shorter
--- conf
registry main 128k {
    health_check jitter=2s interval=1s;
}
--- refused: "health_check": invalid parameter "jitter=2s": jitter may be a time of at most the interval in FILE:2



=== TEST 33: a timeout of 0
--- conf
registry main 128k {
    health_check timeout=0;
}
--- refused: "health_check": invalid parameter "timeout=0": timeout may be a time from 1ms to 1d in FILE:2



=== TEST 34: a timeout that is no time
--- conf
registry main 128k {
    health_check timeout=2sec;
}
--- refused: "health_check": invalid parameter "timeout=2sec": timeout may be a time from 1ms to 1d in FILE:2



=== TEST 35: fails of 0
--- conf
registry main 128k {
    health_check fails=0;
}
--- refused: "health_check": invalid parameter "fails=0": fails may be a number from 1 to 1000 in FILE:2



=== TEST 36: fails of too many
--- conf
registry main 128k {
    health_check fails=1001;
}
--- refused: "health_check": invalid parameter "fails=1001": fails may be a number from 1 to 1000 in FILE:2



=== TEST 37: fails that is no number
--- conf
registry main 128k {
    health_check fails=many;
}
--- refused: "health_check": invalid parameter "fails=many": fails may be a number from 1 to 1000 in FILE:2



=== TEST 38: passes of 0
--- conf
registry main 128k {
    health_check passes=0;
}
--- refused: "health_check": invalid parameter "passes=0": passes may be a number from 1 to 1000 in FILE:2



=== TEST 39: passes of too many
--- conf
registry main 128k {
    health_check passes=1001;
}
--- refused: "health_check": invalid parameter "passes=1001": passes may be a number from 1 to 1000 in FILE:2



=== TEST 40: passes that is no number
--- conf
registry main 128k {
    health_check passes=many;
}
--- refused: "health_check": invalid parameter "passes=many": passes may be a number from 1 to 1000 in FILE:2



=== TEST 41: no status
--- conf
registry main 128k {
    health_check status=;
}
--- refused: "health_check": invalid parameter "status=": status may be codes and ranges from 100 to 599 such as 200-399,401, or all but these: !500,502 in FILE:2



=== TEST 42: a status that there is not
--- conf
registry main 128k {
    health_check status=600;
}
--- refused: "health_check": invalid parameter "status=600": status may be codes and ranges from 100 to 599 such as 200-399,401, or all but these: !500,502 in FILE:2



=== TEST 43: half a range
--- conf
registry main 128k {
    health_check status=200-;
}
--- refused: "health_check": invalid parameter "status=200-": status may be codes and ranges from 100 to 599 such as 200-399,401, or all but these: !500,502 in FILE:2



=== TEST 44: a range backwards
--- conf
registry main 128k {
    health_check status=399-200;
}
--- refused: "health_check": invalid parameter "status=399-200": status may be codes and ranges from 100 to 599 such as 200-399,401, or all but these: !500,502 in FILE:2



=== TEST 45: classes
--- conf
registry main 128k {
    health_check status=2xx;
}
--- refused: "health_check": invalid parameter "status=2xx": status may be codes and ranges from 100 to 599 such as 200-399,401, or all but these: !500,502 in FILE:2



=== TEST 46: an empty part
--- conf
registry main 128k {
    health_check status=200,,204;
}
--- refused: "health_check": invalid parameter "status=200,,204": status may be codes and ranges from 100 to 599 such as 200-399,401, or all but these: !500,502 in FILE:2



=== TEST 47: spaces
--- conf
registry main 128k {
    health_check "status=200, 204";
}
--- refused: "health_check": invalid parameter "status=200, 204": status may be codes and ranges from 100 to 599 such as 200-399,401, or all but these: !500,502 in FILE:2



=== TEST 48: body with another sign
--- conf
registry main 128k {
    health_check body=ok;
}
--- refused: "health_check": invalid parameter "body=ok": write it as body~REGEX or body!~REGEX in FILE:2



=== TEST 49: body alone
--- conf
registry main 128k {
    health_check body;
}
--- refused: "health_check": invalid parameter "body": write it as body~REGEX or body!~REGEX in FILE:2



=== TEST 50: body with a sign alone
--- conf
registry main 128k {
    health_check body ~;
}
--- refused: "health_check": invalid parameter "body ~": the regular expression is missing in FILE:2



=== TEST 51: body and an expression without a sign
--- conf
registry main 128k {
    health_check body ok;
}
--- refused: "health_check": invalid parameter "body ok": write it as body~REGEX or body!~REGEX in FILE:2



=== TEST 52: an empty expression
--- conf
registry main 128k {
    health_check body~;
}
--- refused: "health_check": invalid parameter "body~": the regular expression is missing in FILE:2



=== TEST 53: an expression that is none
--- conf
registry main 128k {
    health_check body~(;
}
--- refused: "health_check": invalid parameter "body~(": bad regular expression: unclosed group in FILE:2



=== TEST 54: an expression that looks back
--- conf
registry main 128k {
    health_check "body~(a)\\1";
}
--- refused: "health_check": invalid parameter "body~(a)...1": bad regular expression: backreferences are not supported in FILE:2



=== TEST 55: an expression that is too large
--- conf
registry main 128k {
    health_check "body~.{9999}";
}
--- refused: "health_check": invalid parameter "body~.{9999}": the regular expression is too large in FILE:2



=== TEST 56: initial
--- conf
registry main 128k {
    health_check initial=unknown;
}
--- refused: "health_check": invalid parameter "initial=unknown": initial may be up, down or probe in FILE:2



=== TEST 57: mode
--- conf
registry main 128k {
    health_check mode=busy;
}
--- refused: "health_check": invalid parameter "mode=busy": mode may be always or idle in FILE:2



=== TEST 58: no service
--- conf
registry main 128k {
    health_check type=grpc service=;
}
--- refused: "health_check": invalid parameter "service=": service may be the name of a gRPC service, of at most 255 visible ASCII characters in FILE:2



=== TEST 59: a parameter that there is not
--- conf
registry main 128k {
    health_check keepalive=1;
}
--- refused: "health_check": invalid parameter "keepalive=1": it may be type=, uri=, host=, port=, interval=, jitter=, timeout=, fails=, passes=, status=, body~, body!~, initial=, mode= or service=, or off alone in FILE:2



=== TEST 60: a word that is no parameter
--- conf
registry main 128k {
    health_check on;
}
--- refused: "health_check": invalid parameter "on": it may be type=, uri=, host=, port=, interval=, jitter=, timeout=, fails=, passes=, status=, body~, body!~, initial=, mode= or service=, or off alone in FILE:2



=== TEST 61: a name in capitals
--- conf
registry main 128k {
    health_check Uri=/;
}
--- refused: "health_check": invalid parameter "Uri=/": it may be type=, uri=, host=, port=, interval=, jitter=, timeout=, fails=, passes=, status=, body~, body!~, initial=, mode= or service=, or off alone in FILE:2



=== TEST 62: a service without gRPC
--- conf
registry main 128k {
    health_check service=a;
}
--- refused: "health_check": invalid parameter "service=a": service goes with type=grpc, not with type=http in FILE:2



=== TEST 63: a path with TCP
--- conf
registry main 128k {
    health_check uri=/ type=tcp;
}
--- refused: "health_check": invalid parameter "uri=/": uri goes with type=http or type=https, not with type=tcp in FILE:2



=== TEST 64: a status with TCP
--- conf
registry main 128k {
    health_check status=200 type=tcp;
}
--- refused: "health_check": invalid parameter "status=200": status goes with type=http or type=https, not with type=tcp in FILE:2



=== TEST 65: a body with TCP
--- conf
registry main 128k {
    health_check body~ok type=tcp;
}
--- refused: "health_check": invalid parameter "body~ok": body goes with type=http or type=https, not with type=tcp in FILE:2



=== TEST 66: a host with TCP
--- conf
registry main 128k {
    health_check host=a type=tcp;
}
--- refused: "health_check": invalid parameter "host=a": host goes with type=http, type=https or type=grpc, not with type=tcp in FILE:2



=== TEST 67: a body with gRPC
--- conf
registry main 128k {
    health_check type=grpc body~ok;
}
--- refused: "health_check": invalid parameter "body~ok": body goes with type=http or type=https, not with type=grpc in FILE:2



=== TEST 68: off and more
--- conf
registry main 128k {
    health_check off fails=1;
}
--- refused: "health_check": "off" of "health_check" goes with no other parameter in FILE:2



=== TEST 69: a parameter twice
--- conf
registry main 128k {
    health_check fails=1 fails=2;
}
--- refused: "health_check": duplicate parameter "fails=2" in FILE:2



=== TEST 70: the directive twice
--- conf
registry main 128k {
    health_check type=tcp;
    health_check type=http;
}
--- refused: "health_check" directive is duplicate in FILE:3



=== TEST 71: outside of a registry
--- conf
health_check type=tcp;
--- refused: ...health_check... in FILE:1



=== TEST 72: the name for upstreams in a registry
--- conf
registry main 128k {
    registry_health_check type=tcp;
}
--- refused: ...registry_health_check... in FILE:2



=== TEST 73: an upstream with checks of its own
--- conf
registry main 128k { health_check type=tcp; }
registry other 128k { }
upstream backend { registry main; registry_health_check uri=/ping interval=1s; }
upstream first { registry_health_check off; registry main; }
upstream alone { registry other; registry_health_check type=grpc; server 127.0.0.1:1; }
--- config
location /upstream/ { registry_api main; }
--- talk
> GET /upstream/status?ns=backend
< 200 []



=== TEST 74: two upstreams of one namespace with the same checks
--- conf
registry main 128k { }
upstream backend { registry main; registry_health_check type=tcp fails=2; }
upstream again { registry main namespace=backend; registry_health_check type=tcp fails=2; }
upstream third { registry main namespace=backend; }
--- talk
> GET /upstream/status
< 200 []



=== TEST 75: two namespaces of one name in two registries
--- conf
registry main 128k { }
registry other 128k { }
upstream backend { registry main; registry_health_check type=tcp; }
upstream again { registry other namespace=backend; registry_health_check type=http; }
--- config
location /upstream/ { registry_api main; }
--- talk
> GET /upstream/status
< 200 []



=== TEST 76: an upstream without a registry
--- conf
upstream backend {
    server 127.0.0.1:1;
    registry_health_check type=tcp;
}
--- refused: "registry_health_check" needs "registry" in its upstream in FILE:3



=== TEST 77: a namespace that is variable
--- conf
registry main 128k { }
upstream backend {
    registry main namespace=$host;
    registry_health_check type=tcp;
}
--- refused: "registry_health_check" needs a fixed namespace: for a variable one the registry's own applies in FILE:4



=== TEST 78: two upstreams that differ
--- conf
registry main 128k { }
upstream backend { registry main; registry_health_check type=tcp; }
upstream again {
    registry main namespace=backend;
    registry_health_check type=http;
}
--- refused: "registry_health_check" of namespace "backend" differs from the one in FILE:...: upstreams of one namespace must say the same, in FILE:...



=== TEST 79: one of them off
--- conf
registry main 128k { }
upstream backend { registry main; registry_health_check type=tcp; }
upstream again { registry main namespace=backend; registry_health_check off; }
--- refused: "registry_health_check" of namespace "backend" differs from the one in FILE:...: upstreams of one namespace must say the same, in FILE:...



=== TEST 80: twice in one upstream
--- conf
registry main 128k { }
upstream backend {
    registry main;
    registry_health_check type=tcp;
    registry_health_check type=tcp;
}
--- refused: "registry_health_check" directive is duplicate in FILE:5



=== TEST 81: wrong in an upstream
--- conf
registry main 128k { }
upstream backend {
    registry main;
    registry_health_check fails=0;
}
--- refused: "registry_health_check": invalid parameter "fails=0": fails may be a number from 1 to 1000 in FILE:4



=== TEST 82: off and more in an upstream
--- conf
registry main 128k { }
upstream backend {
    registry main;
    registry_health_check off type=tcp;
}
--- refused: "registry_health_check": "off" of "health_check" goes with no other parameter in FILE:4



=== TEST 83: in a server
--- conf
registry main 128k { }
server {
    registry_health_check type=tcp;
}
--- refused: "registry_health_check" directive is not allowed here in FILE:3
