# The parameter host: addresses in all their spellings become one; everything else is refused. Left
# out it is the client's address, as nginx sees it.

use FindBin;
use Test::Nginx::Socket;
require "$FindBin::Bin/api-talk.pl";

plan tests => 339;

run_tests();

__DATA__

=== TEST 1: an IPv4 address loses its leading zeros, which do not make it octal
--- talk
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {"addr":"10.0.0.1:9001","host":"10.0.0.1",...}
> POST /upstream/add host=010.000.00.001&port=9001&weight=7
< 200 {"addr":"10.0.0.1:9001","host":"10.0.0.1",...}
> GET /upstream/status
< 200 [{"addr":"10.0.0.1:9001",...,"weight":7,...}]



=== TEST 2: an IPv6 address with and without brackets, in capitals and with zeros, is one server
--- talk
> POST /upstream/add host=2001:db8::1&port=9001
< 200 {"addr":"[2001:db8::1]:9001","host":"2001:db8::1","port":9001,...}
> POST /upstream/add host=[2001:db8::1]&port=9001&weight=2
< 200 {"addr":"[2001:db8::1]:9001","host":"2001:db8::1",...,"weight":2,...}
> POST /upstream/add host=2001:0DB8:0:0:0::0001&port=9001&weight=3
< 200 {"addr":"[2001:db8::1]:9001","host":"2001:db8::1",...,"weight":3,...}
> POST /upstream/refresh {"host":"[2001:DB8:0000:0000:0000:0000:0000:0001]","port":9001}
< 200 {"addr":"[2001:db8::1]:9001",...}
> GET /upstream/status
< 200 [{"addr":"[2001:db8::1]:9001",...,"weight":3,...}]



=== TEST 3: an IPv4 address mapped into IPv6 is the IPv4 address
--- talk
> POST /upstream/add host=::ffff:10.0.0.1&port=9001
< 200 {"addr":"10.0.0.1:9001","host":"10.0.0.1",...}
> POST /upstream/add host=[::FFFF:0A00:0001]&port=9001
< 200 {"addr":"10.0.0.1:9001","host":"10.0.0.1",...}
> POST /upstream/remove host=0:0:0:0:0:ffff:a00:1&port=9001
< 200 {"addr":"10.0.0.1:9001"}
> GET /upstream/status
< 200 []



=== TEST 4: every endpoint finds a server by any of its spellings
--- talk
> POST /upstream/add host=::1&port=9001
< 200 {"addr":"[::1]:9001",...}
> POST /upstream/refresh host=[::1]&port=9001
< 200 {"addr":"[::1]:9001",...}
> POST /upstream/toggle host=0:0::1&port=9001&action=disable
< 200 {"addr":"[::1]:9001","enabled":false}
> POST /upstream/weight host=[0::0001]&port=9001&weight=2
< 200 {"addr":"[::1]:9001","weight":2}
> POST /upstream/drain host=0:0:0:0:0:0:0:1&port=9001
< 200 {"addr":"[::1]:9001","connections":0}
> POST /upstream/remove host=::0.0.0.1&port=9001
< 200 {"addr":"[::1]:9001"}



=== TEST 5: the same host on two ports, and two hosts on one port, are different servers
--- talk
> POST /upstream/add host=10.0.0.1&port=1
< 200 {...}
> POST /upstream/add host=10.0.0.1&port=2
< 200 {...}
> POST /upstream/add host=10.0.0.2&port=1
< 200 {...}
> POST /upstream/remove host=10.0.0.1&port=1
< 200 {...}
> GET /upstream/status
< 200 [{"addr":"10.0.0.1:2",...},{"addr":"10.0.0.2:1",...}]



=== TEST 6: the unspecified addresses are refused, however they are written
--- talk
> POST /upstream/add host=0.0.0.0&port=9001
< 400 Parameter "host" must not be the unspecified address
> POST /upstream/add host=000.0.00.0&port=9001
< 400 Parameter "host" must not be the unspecified address
> POST /upstream/add host=::&port=9001
< 400 Parameter "host" must not be the unspecified address
> POST /upstream/add host=[::]&port=9001
< 400 Parameter "host" must not be the unspecified address
> POST /upstream/add host=0:0:0:0:0:0:0:0&port=9001
< 400 Parameter "host" must not be the unspecified address
> POST /upstream/add host=::ffff:0.0.0.0&port=9001
< 400 Parameter "host" must not be the unspecified address
> POST /upstream/add host=::0.0.0.0&port=9001
< 400 Parameter "host" must not be the unspecified address
> GET /upstream/status
< 200 []



=== TEST 7: names need a resolver, and unix sockets are for server lines alone
--- talk
> POST /upstream/add host=localhost&port=9001
< 400 Parameter "host" is a name, "localhost", and nginx has no resolver to look it up: set "resolver" in http { }, or give an IPv4 or IPv6 address
> POST /upstream/add host=App-1.Example.com.&port=9001
< 400 Parameter "host" is a name, "app-1.example.com", and nginx has no resolver to look it up: set "resolver" in http { }, or give an IPv4 or IPv6 address
> POST /upstream/refresh host=localhost&port=9001
< 404 Server not found: localhost:9001
> POST /upstream/add host=unix:/tmp/a.sock&port=9001
< 400 Parameter "host" must be an IPv4 or IPv6 address, or a name of at most 106 characters: parts of 1 to 63 letters, digits, "_" or "-", with "." between them
> GET /upstream/status
< 200 []



=== TEST 8: what is nearly an address
--- talk
> POST /upstream/add host=10.0.0&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=10.0.0.256&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=10.0.0.0001&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=10.0.0.1.&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=10.0.0.0x1&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=167772161&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=10.0.0.1:80&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=[10.0.0.1]&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=10.0.0.1/32&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=[::1&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=::1]&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=[[::1]]&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=[::1]:80&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=[]&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=fe80::1%25eth0&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=1::2::3&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=g::1&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> GET /upstream/status
< 200 []



=== TEST 9: spaces, control characters, quotes, a NUL, bytes that are no UTF-8
--- talk
> POST /upstream/add host=+10.0.0.1&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=10.0.0.1%20&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=%20&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=10.0.0.1%0A&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=10.0.0.1%0D%0AX:1&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=%1B[31m&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=%22%7D&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host='10.0.0.1'&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=10.0.0.1%00&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=%00&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add {"host":"10.0.0.1\u0000","port":9001}
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=%FF%FE&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=10.0.0.1%C0%80&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> POST /upstream/add host=%EF%BC%91%EF%BC%90.0.0.1&port=9001
< 400 {"code":400,"message":"Parameter \"host\" must be ..."}
> GET /upstream/status
< 200 []



=== TEST 10: 300 characters, 8000 characters
--- talk eval
'> POST /upstream/add host=' . 'a' x 300 . '&port=9001
< 400 Parameter "host" must be an IPv4 or IPv6 address, or a name of at most 106 characters: parts of 1 to 63 letters, digits, "_" or "-", with "." between them
> POST /upstream/add host=' . '0' x 300 . '10.0.0.1&port=9001
< 400 Parameter "host" must be an IPv4 or IPv6 address, or a name of at most 106 characters: parts of 1 to 63 letters, digits, "_" or "-", with "." between them
> POST /upstream/add {"port":9001,"host":"' . '[' x 8000 . '"}
< 400 Parameter "host" must be an IPv4 or IPv6 address, or a name of at most 106 characters: parts of 1 to 63 letters, digits, "_" or "-", with "." between them
> POST /upstream/remove host=' . '1.' x 4000 . '&port=9001
< 400 Parameter "host" must be an IPv4 or IPv6 address, or a name of at most 106 characters: parts of 1 to 63 letters, digits, "_" or "-", with "." between them
> GET /upstream/status
< 200 []
'



=== TEST 11: left out or empty, it is the client's address
--- talk
> POST /upstream/add port=1
< 200 {"addr":"127.0.0.1:1","host":"127.0.0.1",...}
> POST /upstream/add host=&port=2
< 200 {"addr":"127.0.0.1:2","host":"127.0.0.1",...}
> POST /upstream/add {"host":"","port":3}
< 200 {"addr":"127.0.0.1:3",...}
> POST /upstream/refresh port=1
< 200 {"addr":"127.0.0.1:1",...}
> POST /upstream/remove port=2
< 200 {"addr":"127.0.0.1:2"}



=== TEST 12: the client's address is the one that the realip module believes
--- config
set_real_ip_from 127.0.0.1;
real_ip_header X-Real-IP;
location /upstream/ { registry_api main; }
--- talk
> POST /upstream/add port=9001
+ X-Real-IP: 10.0.0.7
< 200 {"addr":"10.0.0.7:9001","host":"10.0.0.7",...}
> POST /upstream/add port=9001
+ X-Real-IP: 2001:DB8::7
< 200 {"addr":"[2001:db8::7]:9001",...}
> POST /upstream/add port=9001
+ X-Real-IP: ::ffff:10.0.0.8
< 200 {"addr":"10.0.0.8:9001",...}
> POST /upstream/add port=9001
< 200 {"addr":"127.0.0.1:9001",...}
> POST /upstream/add port=9001
+ X-Real-IP: nonsense
< 200 {"addr":"127.0.0.1:9001",...}



=== TEST 13: no header is believed without the realip module's leave
--- config
set_real_ip_from 10.0.0.0/8;
location /upstream/ { registry_api main; }
--- talk
> POST /upstream/add port=9001
+ X-Real-IP: 10.0.0.7
+ X-Forwarded-For: 10.0.0.7
+ Forwarded: for=10.0.0.7
< 200 {"addr":"127.0.0.1:9001",...}



=== TEST 14: a client that comes by IPv6
--- http_config
registry main 128k { }
upstream backend { registry main; }
server {
    listen [::1]:$TEST_NGINX_RAND_PORT_1;
    location /upstream/ { registry_api main; }
}
--- config
location /upstream/ { proxy_pass http://[::1]:$TEST_NGINX_RAND_PORT_1; }
--- talk
> POST /upstream/add port=9001
< 200 {"addr":"[::1]:9001","host":"::1",...}
> POST /upstream/refresh host=[::1]&port=9001
< 200 {"addr":"[::1]:9001",...}



=== TEST 15: a client that comes by IPv4 to an IPv6 socket
--- http_config
registry main 128k { }
upstream backend { registry main; }
server {
    listen [::]:$TEST_NGINX_RAND_PORT_1 ipv6only=off;
    location /upstream/ { registry_api main; }
}
--- config
location /upstream/ { proxy_pass http://127.0.0.1:$TEST_NGINX_RAND_PORT_1; }
--- talk
> POST /upstream/add port=9001
< 200 {"addr":"127.0.0.1:9001","host":"127.0.0.1",...}



=== TEST 16: a client on a unix socket must say its host
--- http_config
registry main 128k { }
upstream backend { registry main; }
server {
    listen unix:$TEST_NGINX_SERVER_ROOT/api.sock;
    location /upstream/ { registry_api main; }
}
--- config
location /upstream/ { proxy_pass http://unix:$TEST_NGINX_SERVER_ROOT/api.sock:; }
--- talk
> POST /upstream/add port=9001
< 400 Parameter "host" is required from a client on a unix socket: an IPv4 or IPv6 address, or a name
> POST /upstream/add host=&port=9001
< 400 Parameter "host" is required from a client on a unix socket: an IPv4 or IPv6 address, or a name
> GET /upstream/status
< 200 []
> POST /upstream/add host=10.0.0.1&port=9001
< 200 {"addr":"10.0.0.1:9001",...}



=== TEST 17: unless the realip module knows it
--- http_config
registry main 128k { }
upstream backend { registry main; }
server {
    listen unix:$TEST_NGINX_SERVER_ROOT/api.sock;
    set_real_ip_from unix:;
    location /upstream/ { registry_api main; }
}
--- config
location /upstream/ {
    proxy_set_header X-Real-IP 10.0.0.5;
    proxy_pass http://unix:$TEST_NGINX_SERVER_ROOT/api.sock:;
}
--- talk
> POST /upstream/add port=9001
< 200 {"addr":"10.0.0.5:9001",...}



=== TEST 18: names in all their spellings, and what is none
--- http_config
resolver 127.0.0.1:$TEST_NGINX_RAND_PORT_1;
registry main 128k { }
upstream backend { registry main; }
--- config
location /upstream/ { registry_api main; }
--- talk eval
my $part = 'a' x 63;
my $longest = "$part." . 'b' x 42;
'> POST /upstream/add host=App_1.Example.com.&port=9001
< 200 {"addr":"app_1.example.com:9001","host":"app_1.example.com","port":9001,...}
> POST /upstream/weight host=APP_1.example.COM&port=9001&weight=3
< 200 {"addr":"app_1.example.com:9001","weight":3}
> POST /upstream/add host=' . $longest . '&port=65535
< 200 {"addr":"' . $longest . ':65535",...}
> GET /upstream/status
< 200 [{"addr":"app_1.example.com:9001","host":"app_1.example.com","port":9001,...,"state":"unresolved",...,"name":null,"health":null},{...}]
> POST /upstream/add host=' . $longest . 'b&port=1
< 400 {"code":400,"message":"Parameter \\"host\\" must be ..."}
> POST /upstream/add host=a' . $part . '&port=1
< 400 {"code":400,"message":"Parameter \\"host\\" must be ..."}
' . CORE::join '', map { "> POST /upstream/add host=$_&port=1\n< 400 {\"code\":400,\"message\":\"Parameter \\\"host\\\" must be ...\"}\n" }
    '.', 'a..b', '.a', '-a.b', 'a-.b', 'a%20b', 'a:b', 'a%2Fb', '*.b', '%C3%A4.b', '1.2.3', 'a.1', '300.1.1.1', '0x7f'
