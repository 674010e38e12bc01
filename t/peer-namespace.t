# Which namespace a request goes to, and what happens when there is none, or nobody in it.
# The servers are other server blocks of the same nginx, on 127.0.0.2, .3 and .4.

use Test::Nginx::Socket;

add_block_preprocessor(sub {
    my $block = shift;
    my $servers = join '', map { "server { listen 127.0.0.$_->[0]:\$TEST_NGINX_SERVER_PORT; return 200 $_->[1]; }\n" }
        [ 2, 'a' ], [ 3, 'b' ], [ 4, 'c' ];
    $block->set_value(http_config => $servers . $block->http_config);
    $block->set_value(config => $block->config . 'location /upstream/ { registry_api main allow_get; }');
});

sub add { return "GET /upstream/add?ns=$_[0]&host=127.0.0.$_[1]&port=" . server_port() }

repeat_each(1);
no_root_location();
plan tests => repeat_each() * 154;
run_tests();

__DATA__

=== TEST 1: the upstream's name is the namespace
--- http_config
    registry main 128k { }
    upstream app { registry main; }
--- config
    location = /t { proxy_pass http://app; }
--- request eval
[main::add('app', 2), 'GET /t']
--- error_code eval
[200, 200]
--- response_body eval
[qr/"code":200/, 'a']



=== TEST 2: or another one that is given
--- http_config
    registry main 128k { }
    upstream app { registry main namespace=other; }
--- config
    location = /t { proxy_pass http://app; }
--- request eval
[main::add('app', 2), main::add('other', 3), 'GET /t', 'GET /t']
--- error_code eval
[200, 200, 200, 200]
--- response_body eval
[qr/"code":200/, qr/"code":200/, 'b', 'b']



=== TEST 3: server lines are members of it
--- http_config
    registry main 128k { }
    upstream app { server 127.0.0.2:$TEST_NGINX_SERVER_PORT; registry main; registry_balance round_robin; }
--- config
    location = /t { proxy_pass http://app; }
--- request eval
['GET /t', main::add('app', 3), 'GET /t', 'GET /t', 'GET /t', 'GET /t', 'GET /upstream/status']
--- error_code eval
[200, 200, 200, 200, 200, 200, 200]
--- response_body eval
['a', qr/./, qr/^[ab]$/, qr/^[ab]$/, qr/^[ab]$/, qr/^[ab]$/,
 qr/"addr":"127.0.0.2:\d+".*"requests":3,.*"addr":"127.0.0.3:\d+".*"requests":2,/]



=== TEST 4: several upstreams on one namespace have the same servers
--- http_config
    registry main 128k { }
    upstream one { registry main namespace=app; server 127.0.0.2:$TEST_NGINX_SERVER_PORT; }
    upstream two { registry main namespace=app; }
--- config
    location = /one { proxy_pass http://one; }
    location = /two { proxy_pass http://two; }
--- request eval
['GET /one', 'GET /two', 'GET /upstream/status']
--- error_code eval
[200, 200, 200]
--- response_body eval
['a', 'a', qr/"total":1.*/]



=== TEST 5: the same name in two registries is two namespaces
--- http_config
    registry main 128k { }
    registry more 128k { }
    upstream one { registry main namespace=app; server 127.0.0.2:$TEST_NGINX_SERVER_PORT; }
    upstream two { registry more namespace=app; server 127.0.0.3:$TEST_NGINX_SERVER_PORT; }
--- config
    location = /one { proxy_pass http://one; }
    location = /two { proxy_pass http://two; }
--- request eval
['GET /one', 'GET /two', 'GET /one', 'GET /two']
--- error_code eval
[200, 200, 200, 200]
--- response_body eval
['a', 'b', 'a', 'b']



=== TEST 6: a variable is asked for each request
--- http_config
    registry main 128k { }
    upstream app { registry main namespace=$arg_service; }
--- config
    location = /t { proxy_pass http://app; }
--- request eval
[main::add('one', 2), main::add('two', 3), 'GET /t?service=one', 'GET /t?service=two', 'GET /t?service=one']
--- error_code eval
[200, 200, 200, 200, 200]
--- response_body eval
[qr/./, qr/./, 'a', 'b', 'a']



=== TEST 7: also within a longer name
--- http_config
    registry main 128k { }
    upstream app { registry main namespace=v1.$arg_service-x; }
--- config
    location = /t { proxy_pass http://app; }
--- request eval
[main::add('v1.one-x', 2), 'GET /t?service=one']
--- error_code eval
[200, 200]
--- response_body eval
[qr/./, 'a']



=== TEST 8: one request keeps its namespace for all its tries, even if the variable changes
--- http_config
    registry main 128k { }
    upstream app { registry main namespace=$service; }
    map $upstream_status $service { volatile; - one; default two; }
    server { listen 127.0.0.5:$TEST_NGINX_SERVER_PORT; return 444; }
    server { listen 127.0.0.6:$TEST_NGINX_SERVER_PORT; return 444; }
--- config
    location = /t {
        proxy_pass http://app;
        add_header X-Tried $upstream_addr always;
    }
--- request eval
[main::add('one', 5), main::add('one', 6), main::add('two', 2), 'GET /t']
--- error_code eval
[200, 200, 200, 502]
--- response_headers_like eval
['', '', '', 'X-Tried: 127\.0\.0\.[56]:\d+, 127\.0\.0\.[56]:\d+']



=== TEST 9: an upstream that proxy_pass names by a variable
--- http_config
    registry main 128k { }
    upstream app { registry main; server 127.0.0.2:$TEST_NGINX_SERVER_PORT; }
--- config
    location = /t { proxy_pass http://$arg_to/; }
--- request
GET /t?to=app
--- response_body chomp
a



=== TEST 10: a namespace without servers: 502, nginx's own line and one that says why
--- http_config
    registry main 128k { }
    upstream app { registry main; }
--- config
    location = /t {
        proxy_pass http://app/x;
        add_header X-Addr $upstream_addr always;
        add_header X-Status $upstream_status always;
    }
--- request
GET /t
--- error_code: 502
--- response_headers
X-Addr: app
X-Status: 502
--- error_log eval
[
    qr{\[error\] .* no live upstreams while connecting to upstream, client: 127\.0\.0\.1, server: localhost, request: "GET /t HTTP/1\.1", upstream: "http://app/x"},
    qr{\[error\] .* registry "main": no eligible server in namespace "app": it has no servers while connecting to upstream, client: 127\.0\.0\.1},
]



=== TEST 11: each is said once for a request
--- http_config
    registry main 128k { }
    upstream app { registry main; }
--- config
    location = /t { proxy_pass http://app; }
--- request
GET /t
--- error_code: 502
--- grep_error_log eval
qr/\[error\].*?: \*\d+ (?:no live upstreams|registry "main": no eligible server)/
--- grep_error_log_out eval
qr/\A\S+ \S+ \*\d+ (?:no live upstreams|registry "main": no eligible server)\n\S+ \S+ \*\d+ (?:no live upstreams|registry "main": no eligible server)\n\z/



=== TEST 12: a server line with "down" is switched off
--- http_config
    registry main 128k { }
    upstream app { registry main; server 127.0.0.2:$TEST_NGINX_SERVER_PORT down; server 127.0.0.3:$TEST_NGINX_SERVER_PORT down backup; }
--- config
    location = /t { proxy_pass http://app; }
--- request
GET /t
--- error_code: 502
--- error_log
no live upstreams
no eligible server in namespace "app": 2 disabled while



=== TEST 13: at max_conns; here a request that its server passes on to the same upstream
--- http_config
    registry main 128k { }
    upstream app { registry main; server 127.0.0.5:$TEST_NGINX_SERVER_PORT max_conns=1; }
    server { listen 127.0.0.5:$TEST_NGINX_SERVER_PORT; location / { proxy_pass http://app; } }
--- config
    location = /t { proxy_pass http://app; }
--- request
GET /t
--- error_code: 502
--- error_log
no live upstreams
no eligible server in namespace "app": 1 at max_conns while



=== TEST 14: an unknown namespace is a 502, and no request makes it known
--- http_config
    registry main 128k { }
    upstream app { registry main namespace=$arg_service; }
--- config
    location = /t { proxy_pass http://app; add_header X-Addr $upstream_addr always; }
--- request eval
['GET /t?service=unknown', 'GET /upstream/status?ns=unknown', main::add('one', 2), 'GET /t?service=unknown', 'GET /upstream/status']
--- error_code eval
[502, 404, 200, 502, 200]
--- response_headers_like eval
['X-Addr: app', '', '', 'X-Addr: app', '']
--- response_body eval
[qr/502 Bad Gateway/, qr/unknown/, qr/./, qr/502 Bad Gateway/, qr/"namespace":"one"/]



=== TEST 15: it is said in the log
--- http_config
    registry main 128k { }
    upstream app { registry main namespace=$arg_service; }
--- config
    location = /t { proxy_pass http://app; }
--- request
GET /t?service=unknown
--- error_code: 502
--- error_log
no live upstreams
[error]
registry "main": no eligible server in namespace "unknown": no such namespace while



=== TEST 16: a namespace goes with its last server
--- http_config
    registry main 128k { }
    upstream app { registry main namespace=$arg_service; }
--- config
    location = /t { proxy_pass http://app; }
--- request eval
[main::add('one', 2), 'GET /t?service=one', main::add('one', 2) =~ s/add/remove/r, 'GET /t?service=one', 'GET /upstream/status?ns=one', main::add('one', 3), 'GET /t?service=one']
--- error_code eval
[200, 200, 200, 502, 404, 200, 200]
--- response_body eval
[qr/./, 'a', qr/./, qr/502/, qr/./, qr/./, 'b']



=== TEST 17: one that the configuration names stays
--- http_config
    registry main 128k { }
    upstream app { registry main; }
--- config
    location = /t { proxy_pass http://app; }
--- request eval
[main::add('app', 2), 'GET /t', main::add('app', 2) =~ s/add/remove/r, 'GET /t', 'GET /upstream/status?ns=app', main::add('app', 3), 'GET /t']
--- error_code eval
[200, 200, 200, 502, 200, 200, 200]
--- response_body eval
[qr/./, 'a', qr/./, qr/502/, qr/"total":0/, qr/./, 'b']



=== TEST 18: values that are no namespaces are unknown ones
--- http_config
    registry main 128k { }
    upstream app { registry main namespace=$http_x_service; }
    upstream known { registry main; }
--- config
    location = /t { proxy_pass http://app; }
--- request eval
[('GET /t') x 7, 'GET /upstream/status']
--- more_headers eval
['X-Other: no value', 'X-Service:', 'X-Service: a b', 'X-Service: a/b', 'X-Service: ' . 'a' x 65, "X-Service: \xc3\xa4", 'X-Service: KNOWN', '']
--- error_code eval
[502, 502, 502, 502, 502, 502, 502, 200]
--- response_body eval
[(qr/502 Bad Gateway/) x 7, qr/"data":\[\]/]



=== TEST 19: and stand in the log escaped
--- http_config
    registry main 128k { }
    upstream app { registry main namespace=$http_x_service; }
--- config
    location = /t { proxy_pass http://app; }
--- request
GET /t
--- more_headers eval
qq{X-Service: a"b\\c\x01\xff}
--- error_code: 502
--- error_log eval
['no live upstreams', qr/no eligible server in namespace "a\\"b\\\\c[^"\x01\xff]*": no such namespace while/]



=== TEST 20: a name of 64 characters is one
--- http_config
    registry main 128k { }
    upstream app { registry main namespace=$arg_service; }
--- config
    location = /t { proxy_pass http://app; }
--- request eval
[main::add('A1._-' . 'x' x 59, 2), 'GET /t?service=A1._-' . 'x' x 59]
--- error_code eval
[200, 200]
--- response_body eval
[qr/./, 'a']



=== TEST 21: the 502 can be replaced by an error_page, here another upstream
--- http_config
    registry main 128k { }
    upstream app { registry main; }
    upstream spare { registry main; server 127.0.0.2:$TEST_NGINX_SERVER_PORT; }
--- config
    location = /t { proxy_pass http://app; error_page 502 = @spare; }
    location @spare { proxy_pass http://spare; add_header X-Addr $upstream_addr; }
--- request
GET /t
--- response_headers_like
X-Addr: app : 127.0.0.2:\d+
--- response_body chomp
a



=== TEST 22: for other protocols it is the same
--- http_config
    registry main 128k { }
    upstream app { registry main; }
--- config
    location = /fastcgi { fastcgi_pass app; }
    location = /scgi { scgi_pass app; }
    location = /uwsgi { uwsgi_pass app; }
    location = /grpc { grpc_pass app; }
    location = /tls { proxy_pass https://app; }
--- request eval
[map { "GET /$_" } qw(fastcgi scgi uwsgi grpc tls)]
--- error_code eval
[(502) x 5]
--- response_body eval
[(qr/502 Bad Gateway/) x 5]
