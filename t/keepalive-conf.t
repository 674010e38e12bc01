# registry_keepalive and "registry_balance least_conn warm": what is accepted, and what is
# refused, with file and line.

use FindBin;
use Test::Nginx::Socket;
require "$FindBin::Bin/conf-file.pl";

plan tests => 112;

run_tests();

__DATA__

=== TEST 1: the number of connections alone
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 1; }
--- talk
> GET /upstream/status
< 200 []



=== TEST 2: all parameters, in any order
--- conf
registry main 128k { }
upstream backend {
    registry main;
    registry_keepalive 64 time=1h per_server=64 requests=1000 timeout=60s;
}
--- talk
> GET /upstream/status
< 200 []



=== TEST 3: the smallest and the largest of each
--- conf
registry main 128k { }
upstream a { registry main; registry_keepalive 1 timeout=1ms requests=1 time=1ms per_server=1; }
upstream b { registry main; registry_keepalive 1000000 timeout=365d requests=4294967295 time=365d per_server=1000000; }
--- talk
> GET /upstream/status?ns=b
< 200 []



=== TEST 4: before registry as well
--- conf
upstream backend {
    registry_keepalive 64;
    registry_balance least_conn warm;
    registry main;
}
registry main 128k { }
--- talk
> GET /upstream/status
< 200 []



=== TEST 5: with every balancing method, server lines, a zone line and a namespace of variables
--- conf
registry main 128k { }
upstream a { registry main; registry_keepalive 4; registry_balance round_robin; }
upstream b { registry main; registry_balance least_conn; registry_keepalive 4; server 127.0.0.1:9; zone b 64k; }
upstream c { registry main; registry_balance least_conn warm; registry_keepalive 4; server 127.0.0.1:9 backup; }
upstream d { registry main namespace=$arg_ns; registry_keepalive 4; }
--- talk
> GET /upstream/status?ns=a
< 200 []



=== TEST 6: several upstreams have a pool each, in one registry or in several
--- conf
registry main 128k { }
registry other 128k { }
upstream a { registry main; registry_keepalive 4; }
upstream b { registry main namespace=a; registry_keepalive 8; }
upstream c { registry other; registry_keepalive 4; }
upstream d { registry other; keepalive 4; }
--- talk
> GET /upstream/status?ns=a
< 200 []



=== TEST 7: no number
--- conf
registry main 128k { }
upstream backend {
    registry main;
    registry_keepalive;
}
--- refused: invalid number of arguments in "registry_keepalive" directive in FILE:4



=== TEST 8: none
--- conf
registry main 128k { }
upstream backend {
    registry main;
    registry_keepalive 0;
}
--- refused: invalid number of connections "0" in "registry_keepalive": it may be 1 to 1000000 in FILE:4



=== TEST 9: no number but a word
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive many; }
--- refused: invalid number of connections "many" in "registry_keepalive": it may be 1 to 1000000 in FILE:2



=== TEST 10: a negative number
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive -1; }
--- refused: invalid number of connections "-1" in "registry_keepalive": it may be 1 to 1000000 in FILE:2



=== TEST 11: a number with a sign, a fraction or a unit
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive +1; }
--- refused: invalid number of connections "+1" in "registry_keepalive": it may be 1 to 1000000 in FILE:2



=== TEST 12: a unit
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 1k; }
--- refused: invalid number of connections "1k" in "registry_keepalive": it may be 1 to 1000000 in FILE:2



=== TEST 13: nothing in quotes
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive ""; }
--- refused: invalid number of connections "" in "registry_keepalive": it may be 1 to 1000000 in FILE:2



=== TEST 14: too many
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 1000001; }
--- refused: invalid number of connections "1000001" in "registry_keepalive": it may be 1 to 1000000 in FILE:2



=== TEST 15: more than any number holds
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 99999999999999999999999; }
--- refused: invalid number of connections "99999999999999999999999" in "registry_keepalive": it may be 1 to 1000000 in FILE:2



=== TEST 16: the number is not the first
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive timeout=1s 4; }
--- refused: invalid number of connections "timeout=1s" in "registry_keepalive": it may be 1 to 1000000 in FILE:2



=== TEST 17: a variable
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive $connections; }
--- refused: invalid number of connections "$connections" in "registry_keepalive": it may be 1 to 1000000 in FILE:2



=== TEST 18: an unknown parameter
--- conf
registry main 128k { }
upstream backend {
    registry main;
    registry_keepalive 4
        timeout=1s
        max=3;
}
--- refused: invalid parameter "max=3": it may be timeout=TIME, requests=NUMBER, time=TIME or per_server=NUMBER in FILE:6



=== TEST 19: a second number
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 5; }
--- refused: invalid parameter "5": it may be timeout=TIME, requests=NUMBER, time=TIME or per_server=NUMBER in FILE:2



=== TEST 20: two unknown parameters without a value: the first is named
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 one two; }
--- refused: invalid parameter "one": it may be timeout=TIME, requests=NUMBER, time=TIME or per_server=NUMBER in FILE:2



=== TEST 21: names are those of small letters
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 Timeout=1s; }
--- refused: invalid parameter "Timeout=1s": it may be timeout=TIME, requests=NUMBER, time=TIME or per_server=NUMBER in FILE:2



=== TEST 22: a parameter twice
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 timeout=1s requests=3 timeout=1s; }
--- refused: duplicate parameter "timeout=1s" in FILE:2



=== TEST 23: requests twice
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 requests=1 requests=2; }
--- refused: duplicate parameter "requests=2" in FILE:2



=== TEST 24: time twice
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 time=1 time=2; }
--- refused: duplicate parameter "time=2" in FILE:2



=== TEST 25: per_server twice
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 per_server=1 per_server=2; }
--- refused: duplicate parameter "per_server=2" in FILE:2



=== TEST 26: timeout is no time
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 timeout=soon; }
--- refused: invalid parameter "timeout=soon": timeout may be a time such as 60s in FILE:2



=== TEST 27: no timeout
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 timeout=; }
--- refused: invalid parameter "timeout=": timeout may be a time such as 60s in FILE:2



=== TEST 28: a timeout of 0
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 timeout=0; }
--- refused: invalid parameter "timeout=0": timeout may be a time such as 60s in FILE:2



=== TEST 29: a timeout without its value
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 timeout; }
--- refused: invalid parameter "timeout": it may be timeout=TIME, requests=NUMBER, time=TIME or per_server=NUMBER in FILE:2



=== TEST 30: a timeout of more than a year
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 timeout=366d; }
--- refused: invalid parameter "timeout=366d": timeout may be a time such as 60s in FILE:2



=== TEST 31: a time of 0
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 time=0s; }
--- refused: invalid parameter "time=0s": time may be a time such as 1h in FILE:2



=== TEST 32: a negative time
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 time=-1s; }
--- refused: invalid parameter "time=-1s": time may be a time such as 1h in FILE:2



=== TEST 33: a time with a unit that there is not
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 time=1x; }
--- refused: invalid parameter "time=1x": time may be a time such as 1h in FILE:2



=== TEST 34: no requests
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 requests=0; }
--- refused: invalid parameter "requests=0": requests may be 1 or more in FILE:2



=== TEST 35: requests is no number
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 requests=1.5; }
--- refused: invalid parameter "requests=1.5": requests may be 1 or more in FILE:2



=== TEST 36: none to a server
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 per_server=0; }
--- refused: invalid parameter "per_server=0": per_server may be 1 to the number of connections in FILE:2



=== TEST 37: more to a server than in all
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 per_server=5; }
--- refused: invalid parameter "per_server=5": per_server may be 1 to the number of connections in FILE:2



=== TEST 38: per_server is no number
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4 per_server=all; }
--- refused: invalid parameter "per_server=all": per_server may be 1 to the number of connections in FILE:2



=== TEST 39: without registry
--- conf
upstream backend {
    server 127.0.0.1:9;
    registry_keepalive 4;
}
--- refused: "registry_keepalive" needs "registry" in its upstream in FILE:3



=== TEST 40: without registry, in an upstream that nobody uses and that has nothing else
--- conf
registry main 128k { }
upstream good { registry main; registry_keepalive 4; }
upstream backend {
    least_conn;
    registry_keepalive 4;
    server 127.0.0.1:9;
    keepalive 4;
}
--- refused: "registry_keepalive" needs "registry" in its upstream in FILE:5



=== TEST 41: twice
--- conf
registry main 128k { }
upstream backend {
    registry main;
    registry_keepalive 4;
    registry_keepalive 4;
}
--- refused: "registry_keepalive" directive is duplicate in FILE:5



=== TEST 42: outside an upstream
--- conf
registry main 128k { }
registry_keepalive 4;
--- refused: "registry_keepalive" directive is not allowed here in FILE:2



=== TEST 43: in a registry
--- conf
registry main 128k {
    registry_keepalive 4;
}
--- refused: unknown directive "registry_keepalive"...



=== TEST 44: with stock keepalive after it
--- conf
registry main 128k { }
upstream backend {
    registry main;
    registry_keepalive 4;
    keepalive 4;
}
--- refused: "registry_keepalive" can't be together with another directive that keeps connections: remove "keepalive" or "registry_keepalive" in FILE:4



=== TEST 45: with stock keepalive before it
--- conf
registry main 128k { }
upstream backend {
    registry main;
    keepalive 4;
    registry_keepalive 4;
}
--- refused: "registry_keepalive" can't be together with another directive that keeps connections: remove "keepalive" or "registry_keepalive" in FILE:5



=== TEST 46: stock keepalive before registry has no effect, as everywhere, and nginx warns
--- conf
registry main 128k { }
upstream backend {
    keepalive 4;
    registry_keepalive 4;
    registry main;
}
--- warned: load balancing method redefined in FILE:5
--- talk
> GET /upstream/status
< 200 []



=== TEST 47: with a stock method after it
--- conf
registry main 128k { }
upstream backend {
    registry main;
    registry_keepalive 4;
    least_conn;
}
--- refused: another load balancing method has taken the place of "registry": ... in FILE:3



=== TEST 48: least_conn warm without registry_keepalive
--- conf
registry main 128k { }
upstream backend {
    registry main;
    registry_balance least_conn warm;
}
--- refused: "registry_balance least_conn warm" needs "registry_keepalive" in its upstream: stock keepalive does not say which servers it has connections to in FILE:4



=== TEST 49: with stock keepalive in its place
--- conf
registry main 128k { }
upstream backend {
    registry main;
    registry_balance least_conn warm;
    keepalive 4;
}
--- refused: "registry_balance least_conn warm" needs "registry_keepalive" in its upstream: stock keepalive does not say which servers it has connections to in FILE:4



=== TEST 50: least_conn warm without registry
--- conf
registry main 128k { }
upstream backend {
    registry_balance least_conn warm;
    server 127.0.0.1:9;
}
--- refused: "registry_balance..." needs ... in FILE:3



=== TEST 51: only least_conn can be warm
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4; registry_balance round_robin warm; }
--- refused: invalid balancing method "round_robin warm": it may be least_conn, least_conn warm, round_robin, random... in FILE:2



=== TEST 52: warm once
--- conf
registry main 128k { }
upstream backend { registry main; registry_keepalive 4; registry_balance least_conn warm warm; }
--- refused: invalid balancing method "least_conn warm warm": it may be least_conn, least_conn warm, round_robin, random... in FILE:2
