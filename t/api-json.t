# Bodies of JSON that are none, or not what is asked for; and that every reply is JSON, whatever is
# in the request.

use FindBin;
use Test::Nginx::Socket;
require "$FindBin::Bin/api-talk.pl";

plan tests => 144;

run_tests();

__DATA__

=== TEST 1: malformed JSON is refused, and the message says where
--- talk
> POST /upstream/add {
< 400 {"code":400,"message":"Malformed JSON: ... line 1 column 1..."}
> POST /upstream/add {"port":9001
< 400 {"code":400,"message":"Malformed JSON: ... line 1 column 12..."}
> POST /upstream/add {"port":9001,}
< 400 {"code":400,"message":"Malformed JSON: ..."}
> POST /upstream/add {"port":9001}}
< 400 {"code":400,"message":"Malformed JSON: ..."}
> POST /upstream/add {"port":9001}{"port":9002}
< 400 {"code":400,"message":"Malformed JSON: ..."}
> POST /upstream/add {port:9001}
< 400 {"code":400,"message":"Malformed JSON: ..."}
> POST /upstream/add {'port':9001}
< 400 {"code":400,"message":"Malformed JSON: ..."}
> POST /upstream/add {"port" 9001}
< 400 {"code":400,"message":"Malformed JSON: ..."}
> POST /upstream/add {"port":09001}
< 400 {"code":400,"message":"Malformed JSON: ..."}
> POST /upstream/add {"port":+9001}
< 400 {"code":400,"message":"Malformed JSON: ..."}
> POST /upstream/add {"port":9001 /* the port */}
< 400 {"code":400,"message":"Malformed JSON: ..."}
> POST /upstream/add {"port":NaN}
< 400 {"code":400,"message":"Malformed JSON: ..."}
> POST /upstream/add {"host":"10.0.0.1\","port":9001}
< 400 {"code":400,"message":"Malformed JSON: ..."}
> POST /upstream/add {"host":"\ud800","port":9001}
< 400 {"code":400,"message":"Malformed JSON: ..."}
> GET /upstream/status
< 200 []



=== TEST 2: JSON that is no object
--- talk
> POST /upstream/add [{"port":9001}]
< 400 {"code":400,"message":"Malformed JSON: ... an object ..."}
> POST /upstream/add []
< 400 {"code":400,"message":"Malformed JSON: ... an object ..."}
> POST /upstream/add "port"
+ Content-Type: application/json
< 400 {"code":400,"message":"Malformed JSON: ... an object ..."}
> POST /upstream/add 9001
+ Content-Type: application/json
< 400 {"code":400,"message":"Malformed JSON: ... an object ..."}
> POST /upstream/add null
+ Content-Type: application/json
< 400 {"code":400,"message":"Malformed JSON: ... an object ..."}
> GET /upstream/status
< 200 []



=== TEST 3: values that are no text and no number
--- talk
> POST /upstream/add {"port":[9001]}
< 400 Parameter "port" must be a string or a number
> POST /upstream/add {"port":{"port":9001}}
< 400 Parameter "port" must be a string or a number
> POST /upstream/add {"port":9001,"host":["10.0.0.1","10.0.0.2"]}
< 400 Parameter "host" must be a string or a number
> POST /upstream/add {"port":9001,"weight":true}
< 400 Parameter "weight" must be a string or a number
> POST /upstream/add {"port":9001,"ns":{}}
< 400 Parameter "ns" must be a string or a number
> GET /upstream/status
< 200 []



=== TEST 4: deep nesting
--- talk eval
'> POST /upstream/add {"port":' . '[' x 100 . ']' x 100 . '}
< 400 {"code":400,"message":"..."}
> POST /upstream/add {"port":' . '[' x 30000 . ']' x 30000 . '}
< 400 {"code":400,"message":"Malformed JSON: ..."}
> POST /upstream/add ' . '{"a":' x 8000 . '1' . '}' x 8000 . '
< 400 {"code":400,"message":"..."}
> GET /upstream/status
< 200 []
'



=== TEST 5: thousands of parameters
--- talk eval
'> POST /upstream/add {' . CORE::join(',', map { qq("a$_":1) } 1 .. 5000) . ',"port":9001}
< 400 {"code":400,"message":"Unknown parameter ..."}
> POST /upstream/add ' . CORE::join('&', map { "a$_=1" } 1 .. 5000) . '&port=9001
< 400 {"code":400,"message":"Unknown parameter ..."}
> GET /upstream/status
< 200 []
'



=== TEST 6: bytes that are no UTF-8
--- talk eval
qq(> POST /upstream/add {"host":"\xff\xfe","port":9001}
< 400 {"code":400,"message":"Malformed JSON: ..."}
> POST /upstream/add {"ho\xc3":"10.0.0.1","port":9001}
< 400 {"code":400,"message":"Malformed JSON: ..."}
> GET /upstream/status
< 200 []
)



=== TEST 7: control characters inside a string must be escaped
--- talk eval
qq(> POST /upstream/add {"host":"10.0.0.1\x01","port":9001}
< 400 {"code":400,"message":"Malformed JSON: ..."}
> POST /upstream/add {"host":"10.0.0.1\t","port":9001}
< 400 {"code":400,"message":"Malformed JSON: ..."}
> GET /upstream/status
< 200 []
)



=== TEST 8: names and endpoints come back escaped
--- talk
> POST /upstream/add {"port":1,"a\"b\\c\n\u0001":1}
< 400 {"code":400,"message":"Unknown parameter \"a\"b\\c\n\u0001\"; ..."}
> POST /upstream/add %22%7D%0D%0A%00=1
< 400 {"code":400,"message":"Unknown parameter \"\"}\r\n\u0000\"; ..."}
> GET /upstream/a%22b%5C%0A%01
< 404 {"code":404,"message":"Unknown endpoint: a\"b\\\n\u0001; ..."}
> GET /upstream/%FF%C3%28
< 404 {"code":404,"message":"Unknown endpoint: ..."}
> GET /upstream/%3Cscript%3E
< 404 {"code":404,"message":"Unknown endpoint: <script>; ..."}



=== TEST 9: a long name comes back cut
--- talk eval
'> POST /upstream/add ' . 'x' x 300 . '=1
< 400 {"code":400,"message":"Unknown parameter \"' . 'x' x 40 . '…\"; ..."}
> POST /upstream/add {"' . 'y' x 300 . '":[]}
< 400 {"code":400,"message":"Parameter \"' . 'y' x 40 . '…\" must be a string or a number"}
> GET /upstream/status
< 200 []
'
