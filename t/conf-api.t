# registry_api: its parameters, and what is refused, with file and line.

use FindBin;
use Test::Nginx::Socket;
require "$FindBin::Bin/conf-file.pl";

plan tests => 72;

run_tests();

__DATA__

=== TEST 1: every parameter, in any order
--- conf
registry main 128k { }
registry other 128k { }
--- config
location /1/ { registry_api main; }
location /2/ { registry_api main namespace=a; }
location /3/ { registry_api main namespace=a read_only; }
location /4/ { registry_api main allow_get namespace=a; }
location /5/ { registry_api main read_only allow_get; }
location /6/ { registry_api main namespace=$http_x_n; }
location /7/ { registry_api main "namespace=a-${http_x_n}.b" allow_get; }
location /8/ { registry_api other namespace=z; }
--- talk
> GET /1/status
< 200 []
> GET /2/add?port=1
< 405 Method not allowed; allowed are POST
> POST /3/add port=1
< 403 This location is read only
> GET /4/add?port=1
< 200 {...}
> GET /5/add?ns=a&port=1
< 403 This location is read only
> GET /6/status
+ X-N: a
< 200 [{...,"namespace":"a",...}]
> GET /7/add?port=1
+ X-N: x
< 200 {...}
> GET /1/status?ns=a-x.b
< 200 [{...}]
> GET /8/status
< 200 []



=== TEST 2: before its registry in the file
--- conf
server {
    listen 127.0.0.1:$TEST_NGINX_PORT_1;
    location /upstream/ { registry_api main; }
}
registry main 128k { }
upstream backend { registry main; }
--- talk
> GET /upstream/status
< 200 []



=== TEST 3: a registry that there is not
--- conf
registry main 128k { }
server {
    location /upstream/ {
        registry_api mian;
    }
}
--- refused: unknown registry "mian"; there are "main" in FILE:4



=== TEST 4: no registry anywhere
--- conf
server { location /upstream/ { registry_api main; } }
--- refused: unknown registry "main"; declare one with: registry NAME SIZE { } in FILE:1



=== TEST 5: an upstream is no registry
--- conf
registry main 128k { }
upstream backend { registry main; }
server { location /upstream/ { registry_api backend; } }
--- refused: unknown registry "backend"; there are "main" in FILE:3



=== TEST 6: twice in a location
--- conf
registry main 128k { }
server {
    location /upstream/ {
        registry_api main;
        registry_api main read_only;
    }
}
--- refused: "registry_api" directive is duplicate in FILE:5



=== TEST 7: no name
--- conf
server { location /upstream/ { registry_api; } }
--- refused: invalid number of arguments in "registry_api" directive in FILE:1



=== TEST 8: a parameter that is none
--- conf
registry main 128k { }
server { location /upstream/ { registry_api main readonly; } }
--- refused: invalid parameter "readonly": it may be namespace=NAME, read_only or allow_get... in FILE:2



=== TEST 9: a parameter with a value that it does not take
--- conf
registry main 128k { }
server { location /upstream/ { registry_api main allow_get=on; } }
--- refused: invalid parameter "allow_get=on": it may be namespace=NAME, read_only or allow_get... in FILE:2



=== TEST 10: namespace twice
--- conf
registry main 128k { }
server { location /upstream/ { registry_api main namespace=a namespace=b; } }
--- refused: duplicate parameter "namespace=b" in FILE:2



=== TEST 11: read_only twice
--- conf
registry main 128k { }
server { location /upstream/ { registry_api main read_only read_only; } }
--- refused: duplicate parameter "read_only" in FILE:2



=== TEST 12: allow_get twice
--- conf
registry main 128k { }
server { location /upstream/ { registry_api main allow_get read_only allow_get; } }
--- refused: duplicate parameter "allow_get" in FILE:2



=== TEST 13: a namespace that is none
--- conf
registry main 128k { }
server { location /upstream/ { registry_api main namespace=a/b; } }
--- refused: invalid namespace "a/b": use 1 to 64 letters, digits, ".", "_" or "-", or a variable in FILE:2



=== TEST 14: an empty namespace
--- conf
registry main 128k { }
server { location /upstream/ { registry_api main namespace=; } }
--- refused: invalid namespace "": use 1 to 64 letters, digits, ".", "_" or "-", or a variable in FILE:2



=== TEST 15: a variable that there is not
--- conf
registry main 128k { }
server { location /upstream/ { registry_api main namespace=$no_such_variable; } }
--- refused: unknown "no_such_variable" variable...



=== TEST 16: not in http
--- conf
registry main 128k { }
registry_api main;
--- refused: "registry_api" directive is not allowed here in FILE:2



=== TEST 17: not in a server
--- conf
registry main 128k { }
server {
    registry_api main;
}
--- refused: "registry_api" directive is not allowed here in FILE:3



=== TEST 18: not in an upstream
--- conf
registry main 128k { }
upstream backend { registry main; registry_api main; }
--- refused: "registry_api" directive is not allowed here in FILE:2



=== TEST 19: not in limit_except
--- conf
registry main 128k { }
server { location / { limit_except GET { registry_api main; } } }
--- refused: "registry_api" directive is not allowed here in FILE:2



=== TEST 20: not in an if block
--- conf
registry main 128k { }
server { location / { if ($arg_x) { registry_api main; } } }
--- refused: "registry_api" directive is not allowed here in FILE:2



=== TEST 21: a namespace that only a location names is a namespace of its registry alone
--- conf
registry main 128k { }
registry other 128k { }
--- config
location /upstream/ { registry_api main; }
location /other/ { registry_api other; }
location /a/ { registry_api main namespace=a; }
--- talk
> GET /upstream/status?ns=a
< 200 []
> GET /other/status?ns=a
< 404 Namespace not found: a
