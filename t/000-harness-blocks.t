# The sections that the block tests use, each seen to work with stock nginx.

use Test::Nginx::Socket;

repeat_each(2);

# For each request one test of its status, and one for each header, body or pattern that
# a section names.
plan tests => repeat_each() * 72;

add_block_preprocessor(sub {
    my $block = shift;
    if (defined $block->default_config) {
        $block->set_value(config => 'location = /t { return 200 "from the preprocessor\n"; }');
    }
});

run_tests();

__DATA__

=== TEST 1: response_body; the version and headers that are added
--- config
    location = /t { return 200 "$request_method $uri $args $server_protocol $http_host $http_connection\n"; }
--- request
GET /t?a=1
--- response_body
GET /t a=1 HTTP/1.1 localhost close



=== TEST 2: a body gets its length, outer white space apart
--- config
    location = /t { return 200 "$request_method $content_length $content_type\n"; }
--- request
POST /t
hello
--- more_headers
Content-Type: text/x-test
--- response_body
POST 5 text/x-test



=== TEST 3: error_code, response headers
--- config
    location = /t {
        add_header X-One "a b" always;
        add_header X-Two "123" always;
        return 404;
    }
--- request
GET /t
--- error_code: 404
--- response_headers
X-One: a b
X-Two: 123
! X-Three
--- response_body_like: 404 Not Found



=== TEST 4: response_headers_like, error_code_like, response_body_unlike
--- config
    location = /t { return 302 /elsewhere; }
--- request
GET /t
--- error_code_like: ^30\d$
--- response_headers_like
Location: http://localhost:\d+/elsewhere
Server: nginx.*
--- response_body_unlike: hello



=== TEST 5: raw_response_headers_like and _unlike
--- config
    location = /t { add_header X-One 1; add_header X-One 2; return 204; }
--- request
GET /t
--- error_code: 204
--- raw_response_headers_like: X-One: 1\r\nX-One: 2\r\n
--- raw_response_headers_unlike: X-Two



=== TEST 6: several requests, each with its own expectations
--- config
    location = /a { return 200 "a $http_x_test\n"; }
    location = /b { return 201 "b $http_x_test\n"; }
--- request eval
["GET /a", "DELETE /b"]
--- more_headers eval
["X-Test: 1", "X-Test: 2"]
--- error_code eval
[200, 201]
--- response_body eval
["a 1\n", qr/^b 2$/]



=== TEST 7: pipelined requests share a connection
--- config
    location = /t { return 200 "$connection_requests $arg_n\n"; }
--- pipelined_requests eval
["GET /t?n=a", "GET /t?n=b", "GET /t?n=c"]
--- response_body eval
["1 a\n", "2 b\n", "3 c\n"]



=== TEST 8: raw_request
--- config
    location = /t { return 200 "$request\n"; }
--- raw_request eval
"OPTIONS /t HTTP/1.0\r\nHost: x\r\n\r\n"
--- response_body
OPTIONS /t HTTP/1.0



=== TEST 9: a request in packets with a pause between them
--- config
    client_body_timeout 2s;
    location = /t {
        proxy_pass http://127.0.0.1:$TEST_NGINX_SERVER_PORT/echo;
    }
    location = /echo { return 200 "$content_length\n"; }
--- request eval
[["POST /t\nhel", {value => "lo, world", delay_before => 0.05}]]
--- response_body
12



=== TEST 10: http_config, main_config and the environment in each
--- main_config
    env TEST_NGINX_PORT_1;
    worker_rlimit_nofile 1000;
--- http_config
    server {
        listen 127.0.0.1:$TEST_NGINX_PORT_1;
        return 200 "second server\n";
    }
--- config
    location = /t { proxy_pass http://127.0.0.1:$TEST_NGINX_PORT_1; }
--- request
GET /t
--- response_body
second server



=== TEST 11: error_log names what must be there
--- config
    location = /t { return 200; }
    location = /missing { root $TEST_NGINX_SERVER_ROOT/nowhere; }
--- request
GET /missing
--- error_code: 404
--- error_log eval
["No such file or directory", qr/\[error\] .* open\(\) ".*nowhere\/missing" failed/]



=== TEST 12: no_error_log names what must not be there
--- config
    location = /t { return 200; }
--- request
GET /t
--- no_error_log
[error]
[warn]



=== TEST 13: grep_error_log takes the matches line by line
--- config
    location = /favicon.ico { root $TEST_NGINX_SERVER_ROOT/nowhere; }
--- request
GET /favicon.ico
--- error_code: 404
--- grep_error_log eval
qr/nowhere\/favicon\.ico" failed/
--- grep_error_log_out
nowhere/favicon.ico" failed



=== TEST 14: user_files are in the html directory
--- config
--- user_files
>>> a.txt
text of a
>>> sub/b.txt
text of b
--- request eval
["GET /a.txt", "GET /sub/b.txt", "GET /"]
--- response_body eval
["text of a\n", "text of b\n", qr/It works!/]



=== TEST 15: a client that gives up does not fail the block with abort
--- config
    location = /t { limit_rate 10; limit_rate_after 1; root html; }
--- user_files eval
[["t" => "x" x 10000]]
--- request
GET /t
--- timeout: 100ms
--- abort
--- ignore_response
--- no_error_log
[error]



=== TEST 16: a configuration that nginx must refuse
--- config
    no_such_directive;
--- must_die: 1
--- error_log eval
[qr/\[emerg\] .*unknown directive "no_such_directive" in .*nginx\.conf:\d+/]



=== TEST 17: HEAD has no body to wait for
--- config
    location = /t { return 200 "hello\n"; }
--- request
HEAD /t
--- response_headers
Content-Length: 6
--- response_body eval
""



=== TEST 18: tcp_listen replies and knows what it was sent
--- config
    location = /t { proxy_pass http://127.0.0.1:$TEST_NGINX_PORT_2/up; }
--- tcp_listen eval
$ENV{TEST_NGINX_PORT_2}
--- tcp_query eval
"GET /up HTTP/1.0\r\nHost: 127.0.0.1:$ENV{TEST_NGINX_PORT_2}\r\nConnection: close\r\n\r\n"
--- tcp_reply eval
"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi\n"
--- request
GET /t
--- response_body
hi



=== TEST 19: chunked responses are put together
--- config
    location = /t {
        proxy_http_version 1.1;
        proxy_pass http://127.0.0.1:$TEST_NGINX_PORT_3;
    }
--- tcp_listen eval
$ENV{TEST_NGINX_PORT_3}
--- tcp_reply eval
"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n4\r\ndef\n\r\n0\r\n\r\n"
--- request
GET /t
--- response_headers
Transfer-Encoding: chunked
--- response_body
abcdef



=== TEST 20: debug lines come with log_level
--- log_level: debug
--- config
    location = /t { return 200 "hello\n"; }
--- request
GET /t
--- response_body_filters
uc
--- response_body
HELLO
--- error_log
http process request line



=== TEST 21: a preprocessor can supply a section
--- default_config
--- request
GET /t
--- response_body
from the preprocessor



=== TEST 22: a version that there is not is skipped
--- config
    this would not even start;
--- skip_nginx: 2: > 1.0.0: newer than anything
--- request
GET /t
--- response_body
never seen



=== TEST 23: comments before a request, ports in what is expected
--- config
    location = /t { return 302 /x; }
--- request
# why this request
# is made
GET /t
--- error_code: 302
--- response_headers
Location: http://localhost:$ServerPort/x



=== TEST 24: init runs before the requests, with nginx there
--- config
    location = /t { root html; }
--- init
open my $out, '>', html_dir() . '/t' or die;
print {$out} -s server_root() . '/logs/nginx.pid' ? "pid file\n" : "none\n";
close $out;
--- request
GET /t
--- response_body
pid file



=== TEST 25: an access log line
--- config
    location = /t { return 200; }
--- request
GET /t?marked
--- access_log
GET /t?marked
--- no_access_log
unmarked
