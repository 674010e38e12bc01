# The block registry NAME SIZE { }: what it takes, and what it refuses, with file and line.

use FindBin;
use Test::Nginx::Socket;
require "$FindBin::Bin/conf-file.pl";

plan tests => 151;

run_tests();

__DATA__

=== TEST 1: every directive of the block
--- conf
registry main 1m {
    heartbeat_ttl    30s;
    cleanup_interval 10s;
    on_expire        disable;
    remove_after     120s;
    on_duplicate     refresh;
}
upstream backend { registry main; }
--- talk
> POST /upstream/add port=1
< 200 {...}
> POST /upstream/add port=1
< 200 {...}



=== TEST 2: none of them, in the smallest zone
--- conf
registry main 128k { }
upstream backend { registry main; }
--- talk
> POST /upstream/add port=1
< 200 {...}
> POST /upstream/add port=1
< 200 {...}



=== TEST 3: the other values; times are those of nginx, in quotes when they have spaces
--- conf
registry main 131072 {
    heartbeat_ttl    "1h 30m 500ms";
    cleanup_interval 10ms;
    on_expire        remove;
    remove_after     365d;
    on_duplicate     reject;
}
upstream backend { registry main; }
--- talk
> POST /upstream/add port=1
< 200 {...}
> POST /upstream/add port=1
< 409 Server already exists: 127.0.0.1:1



=== TEST 4: without quotes they are several values
--- conf
registry main 128k {
    heartbeat_ttl 1h 30m;
}
--- refused: invalid number of arguments in "heartbeat_ttl" directive: it takes one in FILE:2



=== TEST 5: 0 is never
--- conf
registry main 1M { heartbeat_ttl 0; remove_after 0; cleanup_interval 10ms; }
upstream backend { registry main; }
--- wait: 0.05
--- talk
> POST /upstream/add port=1
< 200 {...}
> GET /upstream/status
< 200 [{...,"is_active":true,"state":"up",...}]



=== TEST 6: a time without a unit is in seconds
--- conf
registry main 128k { heartbeat_ttl 10; }
upstream backend { registry main; }
--- wait: 0.05
--- talk
> POST /upstream/add port=1
< 200 {...}
> GET /upstream/status
< 200 [{...,"is_active":true,"state":"up",...}]



=== TEST 7: several registries, each with its rules
--- conf
registry main 128k { on_duplicate reject; }
registry other 128k { }
upstream a { registry main; }
upstream b { registry other; }
--- config
location /upstream/ { registry_api main; }
location /other/ { registry_api other; }
--- talk
> POST /upstream/add port=1
< 200 {...}
> POST /other/add port=1
< 200 {...}
> POST /upstream/add port=1
< 409 Server already exists: 127.0.0.1:1
> POST /other/add port=1
< 200 {...}



=== TEST 8: it may stand after everything that names it
--- conf
upstream backend { registry main; }
registry main 128k { }
--- talk
> GET /upstream/status
< 200 []



=== TEST 9: nobody needs to name it
--- conf
registry main 128k { }
registry unused-1.x_Y 16m { }
--- talk
> GET /upstream/status?ns=a
< 404 Namespace not found: a



=== TEST 10: its name may be that of another module's zone
--- conf
limit_req_zone $binary_remote_addr zone=main:64k rate=100r/s;
limit_conn_zone $binary_remote_addr zone=other:64k;
registry main 128k { }
registry other 192k { }
upstream backend { zone backend 64k; registry main; }
registry backend 128k { }
--- config
location /upstream/ { registry_api main; limit_req zone=main burst=10; limit_conn other 10; }
--- talk
> POST /upstream/add port=1
< 200 {...}
> GET /upstream/status
< 200 [{...}]



=== TEST 11: comments and empty lines in it
--- conf
registry main 128k {
    # silent for longer: expired

    heartbeat_ttl 30s; # half a minute
}
upstream backend { registry main; }
--- talk
> GET /upstream/status
< 200 []



=== TEST 12: a name twice names the first place
--- conf
registry main 128k { }

registry main 1m { }
--- refused: duplicate registry "main", the first is in FILE:1 in FILE:3



=== TEST 13: a name that is none
--- conf
registry a/b 128k { }
--- refused: invalid registry name "a/b": use 1 to 64 letters, digits, ".", "_" or "-" in FILE:1



=== TEST 14: an empty name
--- conf
registry "" 128k { }
--- refused: invalid registry name "": use 1 to 64 letters, digits, ".", "_" or "-" in FILE:1



=== TEST 15: a name of 65 characters
--- conf eval
'registry ' . 'a' x 65 . ' 128k { }'
--- refused: invalid registry name "...": use 1 to 64 letters, digits, ".", "_" or "-" in FILE:1



=== TEST 16: a variable for a name
--- conf
registry $host 128k { }
--- refused: invalid registry name "$host": use 1 to 64 letters, digits, ".", "_" or "-" in FILE:1



=== TEST 17: a size that is too small names the smallest
--- conf
registry main 127k { }
--- refused: registry "main" is too small with 127k: the smallest size is 128k in FILE:1



=== TEST 18: one byte too small
--- conf
registry main 131071 { }
--- refused: registry "main" is too small with 131071: the smallest size is 128k in FILE:1



=== TEST 19: no size at all
--- conf
registry main 0 { }
--- refused: registry "main" is too small with 0: the smallest size is 128k in FILE:1



=== TEST 20: a size that is none
--- conf
registry main big { }
--- refused: invalid size "big" of registry "main": write it as 16m or 512k in FILE:1



=== TEST 21: a negative size
--- conf
registry main -1m { }
--- refused: invalid size "-1m" of registry "main": write it as 16m or 512k in FILE:1



=== TEST 22: an empty size
--- conf
registry main "" { }
--- refused: invalid size "" of registry "main": write it as 16m or 512k in FILE:1



=== TEST 23: a size beyond all memory
--- conf
registry main 99999999999999999999 { }
--- refused: invalid size "99999999999999999999" of registry "main": write it as 16m or 512k in FILE:1



=== TEST 24: the size left out
--- conf
registry main { }
--- refused: invalid number of arguments in "registry" directive in FILE:1



=== TEST 25: name and size left out
--- conf
registry { }
--- refused: invalid number of arguments in "registry" directive in FILE:1



=== TEST 26: a word too many
--- conf
registry main 128k ttl=30s { }
--- refused: invalid number of arguments in "registry" directive in FILE:1



=== TEST 27: no block
--- conf
registry main 128k;
--- refused: directive "registry" has no opening "{" in FILE:1



=== TEST 28: a block that does not end
--- conf
registry main 128k {
    heartbeat_ttl 30s;
--- refused: unexpected end of file, expecting "}" in FILE:3



=== TEST 29: a directive that does not end
--- conf
registry main 128k {
    heartbeat_ttl 30s
}
--- refused: unexpected "}" in FILE:3



=== TEST 30: a block inside the block
--- conf
registry main 128k {
    heartbeat_ttl 30s { }
}
--- refused: unexpected "{" in FILE:2



=== TEST 31: a directive that is none names those that are
--- conf
registry main 128k {
    heartbeat 30s;
}
--- refused: unknown directive "heartbeat" in a registry block: there are heartbeat_ttl, cleanup_interval, on_expire, remove_after, on_duplicate... in FILE:2



=== TEST 32: a directive of nginx, which has no place there
--- conf
registry main 128k { keepalive_timeout 30s; }
--- refused: unknown directive "keepalive_timeout" in a registry block: there are ... in FILE:1



=== TEST 33: a directive without its value
--- conf
registry main 128k {
    on_expire;
}
--- refused: invalid number of arguments in "on_expire" directive: it takes one in FILE:2



=== TEST 34: a directive with two
--- conf
registry main 128k {
    on_duplicate refresh reject;
}
--- refused: invalid number of arguments in "on_duplicate" directive: it takes one in FILE:2



=== TEST 35: heartbeat_ttl twice
--- conf
registry main 128k {
    heartbeat_ttl 30s;
    heartbeat_ttl 30s;
}
--- refused: "heartbeat_ttl" directive is duplicate in FILE:3



=== TEST 36: cleanup_interval twice
--- conf
registry main 128k { cleanup_interval 1s; cleanup_interval 2s; }
--- refused: "cleanup_interval" directive is duplicate in FILE:1



=== TEST 37: on_expire twice
--- conf
registry main 128k { on_expire remove; on_expire remove; }
--- refused: "on_expire" directive is duplicate in FILE:1



=== TEST 38: remove_after twice
--- conf
registry main 128k { remove_after 1s; remove_after 0; }
--- refused: "remove_after" directive is duplicate in FILE:1



=== TEST 39: on_duplicate twice
--- conf
registry main 128k { on_duplicate reject; on_duplicate reject; }
--- refused: "on_duplicate" directive is duplicate in FILE:1



=== TEST 40: heartbeat_ttl that is no time
--- conf
registry main 128k {
    heartbeat_ttl soon;
}
--- refused: invalid time "soon" in "heartbeat_ttl": write it as 30s, or 0 for servers that never expire in FILE:2



=== TEST 41: an empty one
--- conf
registry main 128k { heartbeat_ttl ""; }
--- refused: invalid time "" in "heartbeat_ttl": write it as 30s, or 0 for servers that never expire in FILE:1



=== TEST 42: a negative one
--- conf
registry main 128k { heartbeat_ttl -1; }
--- refused: invalid time "-1" in "heartbeat_ttl": write it as 30s, or 0 for servers that never expire in FILE:1



=== TEST 43: a fraction
--- conf
registry main 128k { heartbeat_ttl 1.5s; }
--- refused: invalid time "1.5s" in "heartbeat_ttl": write it as 30s, or 0 for servers that never expire in FILE:1



=== TEST 44: a unit that is none
--- conf
registry main 128k { heartbeat_ttl 30sec; }
--- refused: invalid time "30sec" in "heartbeat_ttl": write it as 30s, or 0 for servers that never expire in FILE:1



=== TEST 45: longer than a year
--- conf
registry main 128k { heartbeat_ttl 366d; }
--- refused: invalid time "366d" in "heartbeat_ttl": it may be a year at most in FILE:1



=== TEST 46: longer than can be counted
--- conf
registry main 128k { remove_after 99999999999999999999s; }
--- refused: invalid time "99999999999999999999s" in "remove_after": ... in FILE:1



=== TEST 47: remove_after that is no time
--- conf
registry main 128k { remove_after never; }
--- refused: invalid time "never" in "remove_after": write it as 120s, or 0 to never forget a server in FILE:1



=== TEST 48: cleanup_interval must be a time
--- conf
registry main 128k { cleanup_interval 0; }
--- refused: invalid time "0" in "cleanup_interval": write it as 10s, it must be at least 10ms in FILE:1



=== TEST 49: and one that a timer can keep
--- conf
registry main 128k { cleanup_interval 9ms; }
--- refused: invalid time "9ms" in "cleanup_interval": write it as 10s, it must be at least 10ms in FILE:1



=== TEST 50: on_expire is one of two words
--- conf
registry main 128k { on_expire delete; }
--- refused: invalid value "delete" in "on_expire": it may be disable or remove in FILE:1



=== TEST 51: in small letters
--- conf
registry main 128k { on_expire Remove; }
--- refused: invalid value "Remove" in "on_expire": it may be disable or remove in FILE:1



=== TEST 52: on_duplicate too
--- conf
registry main 128k { on_duplicate ignore; }
--- refused: invalid value "ignore" in "on_duplicate": it may be refresh or reject in FILE:1



=== TEST 53: not in a server block
--- conf
server { registry main 128k { } }
--- refused: "registry" directive is not allowed here in FILE:1



=== TEST 54: not in a location
--- conf
server {
    location / {
        registry main 128k { }
    }
}
--- refused: "registry" directive is not allowed here in FILE:3



=== TEST 55: not in an upstream
--- conf
upstream backend {
    registry main 128k { }
}
--- refused: directive "registry" is not terminated by ";" in FILE:2



=== TEST 56: not outside of http
--- conf
--- main_config
registry main 128k { }
--- config
--- refused: "registry" directive is not allowed here in ...nginx.conf:...



=== TEST 57: its directives not outside of it
--- conf
registry main 128k { }
heartbeat_ttl 30s;
--- refused: unknown directive "heartbeat_ttl" in FILE:2
