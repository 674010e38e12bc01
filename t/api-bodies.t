# How a body comes: whole or in pieces, in memory or in a file, by length or in chunks; and that 64k
# are the most.

use FindBin;
use Test::Nginx::Socket;
require "$FindBin::Bin/api-talk.pl";

# So many bytes of JSON, without port and with.
sub json_of {
    my ($bytes) = @_;
    return '{"port":' . ' ' x ($bytes - 13) . '9001}';
}

# A body in chunks, and the request that it belongs to.
sub chunks { return CORE::join('', map { sprintf "%x\r\n%s\r\n", length $_, $_ } @_) . "0\r\n\r\n" }
sub chunked {
    return "POST /upstream/add HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        . "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" . chunks(@_);
}

plan tests => 126;

run_tests();

__DATA__

=== TEST 1: no body, with and without a length
--- talk
> POST /upstream/add?port=1
< 200 {...}
> POST /upstream/add?port=2
+ Content-Length: 0
< 200 {...}
> POST /upstream/add?port=3
+ Content-Length: 0
+ Content-Type: text/plain
< 200 {...}
> POST /upstream/add
+ Content-Length: 0
+ Content-Type: application/json
< 400 Parameter "port" is required: an integer from 1 to 65535



=== TEST 2: larger than client_body_buffer_size
--- config
location /upstream/ { registry_api main; client_body_buffer_size 1k; }
--- talk eval
'> POST /upstream/add ' . main::json_of(1025) . '
< 200 {"addr":"127.0.0.1:9001",...}
> POST /upstream/refresh ' . main::json_of(40_000) . '
< 200 {"addr":"127.0.0.1:9001",...}
'



=== TEST 3: of 64k, and one byte more
--- talk eval
'> POST /upstream/add ' . main::json_of(65_537) . '
< 413 The body is too long: at most 65536 bytes
> GET /upstream/status
< 200 []
> POST /upstream/add ' . main::json_of(65_536) . '
< 200 {"addr":"127.0.0.1:9001",...}
'



=== TEST 4: of 10 MB
--- talk eval
'> POST /upstream/add ' . main::json_of(10_000_000) . '
< 413 The body is too long: at most 65536 bytes
> POST /upstream/add?port=9001 ' . 'x' x 10_000_000 . '
< 413 The body is too long: at most 65536 bytes
> GET /upstream/status
< 200 []
'



=== TEST 5: client_max_body_size is no page of HTML here
--- config
location /upstream/ { registry_api main; client_max_body_size 1k; }
location /bound/ {
    client_max_body_size 1k;
    location /bound/upstream/ { registry_api main; }
}
--- talk eval
'> POST /upstream/add ' . main::json_of(100_000) . '
< 413 The body is too long: at most 65536 bytes
> POST /bound/upstream/add ' . main::json_of(100_000) . '
< 413 The body is too long: at most 65536 bytes
> GET /upstream/status
< 200 []
> POST /upstream/add ' . main::json_of(2_000) . '
< 200 {...}
'



=== TEST 6: kept in a file, because the location wants it so
--- config
location /upstream/ { registry_api main; client_body_in_file_only clean; }
location /single/ { registry_api main; client_body_in_single_buffer on; }
--- talk eval
'> POST /upstream/add port=9001
< 200 {...}
> POST /upstream/refresh ' . main::json_of(30_000) . '
< 200 {...}
> POST /single/refresh ' . main::json_of(30_000) . '
< 200 {...}
'



=== TEST 7: read by another module before, into memory
--- config
location /upstream/ { registry_api main; mirror /copy; }
location = /copy { internal; return 204; }
--- talk eval
'> POST /upstream/add port=9001
< 200 {...}
> POST /upstream/refresh ' . main::json_of(10_000) . '
< 200 {...}
> POST /upstream/add ' . main::json_of(65_537) . '
< 413 The body is too long: at most 65536 bytes
'



=== TEST 8: read by another module before, into a file
--- config
location /upstream/ { registry_api main; mirror /copy; client_body_buffer_size 1k; }
location /always/ { registry_api main; mirror /copy; client_body_in_file_only clean; }
location = /copy { internal; return 204; }
--- talk eval
'> POST /upstream/add ' . main::json_of(5_000) . '
< 200 {"addr":"127.0.0.1:9001",...}
> POST /upstream/refresh ' . main::json_of(65_536) . '
< 200 {...}
> POST /upstream/refresh ' . main::json_of(65_537) . '
< 413 The body is too long: at most 65536 bytes
> POST /always/remove port=9001
< 200 {"addr":"127.0.0.1:9001"}
'



=== TEST 9: in pieces
--- request eval
[["POST /upstream/add\nho", { value => "st=10.0.0.1&po", delay_before => 0.02 },
  { value => "rt=9001&weight=2", delay_before => 0.02 }]]
--- response_body
{"code":200,"message":"Success","data":{"addr":"10.0.0.1:9001","host":"10.0.0.1","port":9001,"weight":2,"max_conns":1000,"enabled":true}}



=== TEST 10: in chunks
--- raw_request eval
main::chunked('{"port"', ':', '9001', ',"weight":3}')
--- response_body
{"code":200,"message":"Success","data":{"addr":"127.0.0.1:9001","host":"127.0.0.1","port":9001,"weight":3,"max_conns":1000,"enabled":true}}



=== TEST 11: in chunks that come one by one, cut in their middle
--- raw_request eval
my $bytes = main::chunked('{"port"', ':', '9001', ',"weight":3}');
[substr($bytes, 0, 125), substr($bytes, 125, 30), substr($bytes, 155)]
--- raw_request_middle_delay: 0.02
--- response_body
{"code":200,"message":"Success","data":{"addr":"127.0.0.1:9001","host":"127.0.0.1","port":9001,"weight":3,"max_conns":1000,"enabled":true}}



=== TEST 12: in many chunks of one byte
--- raw_request eval
main::chunked(split //, main::json_of(5_000))
--- response_body_like: ^\{"code":200,.*"port":9001,.*\}\n$



=== TEST 13: in chunks of 64k together
--- raw_request eval
main::chunked(unpack '(a4096)*', main::json_of(65_536))
--- response_body_like: ^\{"code":200,.*"port":9001,.*\}\n$



=== TEST 14: in chunks, one byte more
--- raw_request eval
main::chunked(unpack '(a4096)*', main::json_of(65_537))
--- error_code: 413
--- response_headers
Content-Type: application/json; charset=utf-8
--- response_body
{"code":413,"message":"The body is too long: at most 65536 bytes"}



=== TEST 15: in chunks of 10 MB together
--- raw_request eval
main::chunked(unpack '(a65536)*', main::json_of(10_000_000))
--- error_code: 413
--- response_headers
Content-Type: application/json; charset=utf-8
--- response_body
{"code":413,"message":"The body is too long: at most 65536 bytes"}



=== TEST 16: in chunks that are none
--- raw_request eval
my $bytes = main::chunked('{"port":9001}');
$bytes =~ s/\r\nd\r\n/\r\nport\r\n/;
$bytes
--- error_code: 400
--- response_headers
Content-Type: application/json; charset=utf-8
--- response_body
{"code":400,"message":"The body is malformed"}



=== TEST 17: the second chunk is none
--- raw_request eval
my $bytes = main::chunked('{"port":9001,', '"weight":1}');
$bytes =~ s/\r\nb\r\n/\r\nx\r\n/;
[substr($bytes, 0, 145), substr($bytes, 145)]
--- raw_request_middle_delay: 0.02
--- error_code: 400
--- response_headers
Content-Type: application/json; charset=utf-8
--- response_body
{"code":400,"message":"The body is malformed"}



=== TEST 18: that does not come in time
--- config
location /upstream/ { registry_api main; client_body_timeout 100ms; }
--- raw_request eval
"POST /upstream/add HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\nport=9001"
--- error_code: 408
--- response_headers
Content-Type: application/json; charset=utf-8
Connection: close
--- response_body
{"code":408,"message":"The body did not come in time"}



=== TEST 19: that does not come at all, and is announced by chunks
--- config
location /upstream/ { registry_api main; client_body_timeout 100ms; }
--- raw_request eval
"POST /upstream/add?port=9001 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
--- error_code: 408
--- response_headers
Content-Type: application/json; charset=utf-8
Connection: close
--- response_body
{"code":408,"message":"The body did not come in time"}



=== TEST 20: of a request that takes none: it does not count
--- talk
> POST /upstream/add port=9001
< 200 {...}
> GET /upstream/status ns=nonsense
< 200 [{...}]
> GET /upstream/health {"ns":
< 200 ...



=== TEST 21: of 10 MB, with a request that takes none
--- talk eval
'> GET /upstream/status ' . 'x' x 10_000_000 . '
< 200 []
> PUT /upstream/add ' . 'x' x 10_000_000 . '
< 405 Method not allowed; allowed are POST
> POST /upstream/nonsense ' . 'x' x 10_000_000 . '
< 404 {"code":404,"message":"Unknown endpoint: nonsense; ..."}
'
