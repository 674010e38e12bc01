# How parameters come: as a query string, a form, a JSON object, or a mixture; and what is wrong
# with those that are refused. After each refusal nothing has changed.

use FindBin;
use Test::Nginx::Socket;
require "$FindBin::Bin/api-talk.pl";

plan tests => 348;

run_tests();

__DATA__

=== TEST 1: in the query string
--- talk
> POST /upstream/add?host=10.0.0.1&port=9001&weight=2&max_conns=3
< 200 {"addr":"10.0.0.1:9001","host":"10.0.0.1","port":9001,"weight":2,"max_conns":3,"enabled":true}



=== TEST 2: in a form
--- talk
> POST /upstream/add host=10.0.0.1&port=9001&weight=2&max_conns=3
< 200 {"addr":"10.0.0.1:9001","host":"10.0.0.1","port":9001,"weight":2,"max_conns":3,"enabled":true}



=== TEST 3: in a JSON object, numbers as numbers or as strings, in any order
--- talk
> POST /upstream/add {"max_conns":3,"weight":2,"port":9001,"host":"10.0.0.1"}
< 200 {"addr":"10.0.0.1:9001","host":"10.0.0.1","port":9001,"weight":2,"max_conns":3,"enabled":true}
> POST /upstream/add { "host" : "10.0.0.2" , "port" : "9001" , "weight" : "2" , "max_conns" : "3" }
< 200 {"addr":"10.0.0.2:9001","host":"10.0.0.2","port":9001,"weight":2,"max_conns":3,"enabled":true}



=== TEST 4: part in the query string, part in the body
--- talk
> POST /upstream/add?ns=backend&host=10.0.0.1 port=9001&weight=2
< 200 {"addr":"10.0.0.1:9001",...,"weight":2,...}
> POST /upstream/weight?host=10.0.0.1&weight=3 {"port":9001}
< 200 {"addr":"10.0.0.1:9001","weight":3}



=== TEST 5: percent-encoding and plus
--- talk
> POST /upstream/add?%68ost=10%2E0%2e0%2E1&p%6Frt=90%301
< 200 {"addr":"10.0.0.1:9001",...}
> POST /upstream/add h%6fst=%5B2001%3adb8%3A%3a1%5D&port=9001
< 200 {"addr":"[2001:db8::1]:9001",...}
> POST /upstream/add port=+9001
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add port=%2B9001
< 400 Parameter "port" must be an integer from 1 to 65535
> GET /upstream/health
< 200 {"code":200,...,"data":{"total_servers":2,...}}



=== TEST 6: escapes in JSON
--- talk
> POST /upstream/add {"h\u006fst":"10\u002e0.0.1","port":"\u0039001"}
< 200 {"addr":"10.0.0.1:9001",...}



=== TEST 7: empty parts of a form, an ampersand too many, a body of white space
--- talk
> POST /upstream/add?&port=9001&
< 200 {"addr":"127.0.0.1:9001",...}
> POST /upstream/add &&port=9002&&
< 200 {"addr":"127.0.0.1:9002",...}
> POST /upstream/add? port=9003
< 200 {"addr":"127.0.0.1:9003",...}



=== TEST 8: null in JSON is a parameter left out
--- talk
> POST /upstream/add {"host":null,"port":9001,"weight":null,"max_conns":null,"ns":null}
< 200 {"addr":"127.0.0.1:9001",...,"weight":1,"max_conns":1000,...}
> POST /upstream/add {"port":null}
< 400 Parameter "port" is required: an integer from 1 to 65535



=== TEST 9: the types of content, with parameters and in any case
--- talk
> POST /upstream/add {"port":1}
+ Content-Type: application/json; charset=utf-8
< 200 {...}
> POST /upstream/add {"port":2}
+ Content-Type: Application/JSON ;charset="UTF-8"
< 200 {...}
> POST /upstream/add port=3
+ Content-Type: application/x-www-form-urlencoded; charset=utf-8
< 200 {...}
> POST /upstream/add port=4
+ Content-Type: APPLICATION/X-WWW-FORM-URLENCODED
< 200 {...}
> POST /upstream/add?port=5
+ Content-Type: application/json
< 200 {...}



=== TEST 10: a body of another type is refused
--- talk
> POST /upstream/add port=1
+ Content-Type: text/plain
< 415 Content-Type must be application/json or application/x-www-form-urlencoded
> POST /upstream/add {"port":1}
+ Content-Type: application/jsonp
< 415 Content-Type must be application/json or application/x-www-form-urlencoded
> POST /upstream/add --x
+ Content-Type: multipart/form-data; boundary=x
< 415 Content-Type must be application/json or application/x-www-form-urlencoded
> POST /upstream/add?port=1 <port>1</port>
+ Content-Type: application/xml
< 415 Content-Type must be application/json or application/x-www-form-urlencoded
> GET /upstream/status
< 200 []



=== TEST 11: JSON sent as a form, and a form sent as JSON
--- talk
> POST /upstream/add {"port":1}
+ Content-Type: application/x-www-form-urlencoded
< 400 {"code":400,"message":"..."}
> POST /upstream/add port=1
+ Content-Type: application/json
< 400 {"code":400,"message":"Malformed JSON: ..."}
> GET /upstream/status
< 200 []



=== TEST 12: a parameter left out or empty is named, with what it may be
--- talk
> POST /upstream/add
< 400 Parameter "port" is required: an integer from 1 to 65535
> POST /upstream/add host=10.0.0.1
< 400 Parameter "port" is required: an integer from 1 to 65535
> POST /upstream/add port=
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add port
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add {}
< 400 Parameter "port" is required: an integer from 1 to 65535
> POST /upstream/add {"port":""}
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add port=1&weight=
< 400 Parameter "weight" must be an integer from 0 to 65535
> POST /upstream/add port=1&max_conns=
< 400 Parameter "max_conns" must be an integer from 0 to 2147483647
> POST /upstream/remove
< 400 Parameter "port" is required: an integer from 1 to 65535
> POST /upstream/refresh
< 400 Parameter "port" is required: an integer from 1 to 65535
> POST /upstream/drain
< 400 Parameter "port" is required: an integer from 1 to 65535
> POST /upstream/weight weight=1
< 400 Parameter "port" is required: an integer from 1 to 65535
> POST /upstream/toggle action=enable
< 400 Parameter "port" is required: an integer from 1 to 65535
> POST /upstream/weight port=1
< 400 Parameter "weight" is required: an integer from 0 to 65535
> POST /upstream/toggle port=1
< 400 Parameter "action" is required: enable or disable
> GET /upstream/status
< 200 []



=== TEST 13: ports that are none
--- talk
> POST /upstream/add port=0
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add port=65536
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add port=-1
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add port=0x50
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add port=80.5
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add port=80.0
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add port=1e2
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add port=http
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add port=80%20
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add port=80%00
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add port=80,81
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add port=4294967376
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add port=18446744073709551696
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add port=99999999999999999999999999999999999999999999999999
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add port=%D9%A8%D9%A0
< 400 Parameter "port" must be an integer from 1 to 65535
> GET /upstream/status
< 200 []



=== TEST 14: the same in JSON
--- talk
> POST /upstream/add {"port":0}
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add {"port":65536}
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add {"port":-80}
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add {"port":80.5}
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add {"port":18446744073709551696}
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add {"port":1e400}
< 400 {"code":400,"message":"..."}
> POST /upstream/add {"port":"0x50"}
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add {"port":true}
< 400 Parameter "port" must be a string or a number
> GET /upstream/status
< 200 []



=== TEST 15: weights and limits out of their ranges
--- talk
> POST /upstream/add port=1
< 200 {...}
> POST /upstream/add port=1&weight=65536
< 400 Parameter "weight" must be an integer from 0 to 65535
> POST /upstream/add port=1&weight=-1
< 400 Parameter "weight" must be an integer from 0 to 65535
> POST /upstream/add port=1&weight=heavy
< 400 Parameter "weight" must be an integer from 0 to 65535
> POST /upstream/add port=1&weight=1.5
< 400 Parameter "weight" must be an integer from 0 to 65535
> POST /upstream/add port=1&weight=4294967297
< 400 Parameter "weight" must be an integer from 0 to 65535
> POST /upstream/weight port=1&weight=65536
< 400 Parameter "weight" must be an integer from 0 to 65535
> POST /upstream/weight port=1&weight=-1
< 400 Parameter "weight" must be an integer from 0 to 65535
> POST /upstream/weight port=1&weight=
< 400 Parameter "weight" must be an integer from 0 to 65535
> POST /upstream/add port=1&max_conns=2147483648
< 400 Parameter "max_conns" must be an integer from 0 to 2147483647
> POST /upstream/add port=1&max_conns=-1
< 400 Parameter "max_conns" must be an integer from 0 to 2147483647
> POST /upstream/add port=1&max_conns=many
< 400 Parameter "max_conns" must be an integer from 0 to 2147483647
> POST /upstream/add port=2&weight=5&max_conns=many
< 400 Parameter "max_conns" must be an integer from 0 to 2147483647
> GET /upstream/status
< 200 [{"addr":"127.0.0.1:1",...,"weight":1,"max_conns":1000,...}]



=== TEST 16: an action is one of two words
--- talk
> POST /upstream/add port=1
< 200 {...}
> POST /upstream/toggle port=1&action=
< 400 Parameter "action" must be enable or disable
> POST /upstream/toggle port=1&action=Disable
< 400 Parameter "action" must be enable or disable
> POST /upstream/toggle port=1&action=disabled
< 400 Parameter "action" must be enable or disable
> POST /upstream/toggle port=1&action=disable%00
< 400 Parameter "action" must be enable or disable
> POST /upstream/toggle {"port":1,"action":0}
< 400 Parameter "action" must be enable or disable
> POST /upstream/toggle {"port":1,"action":false}
< 400 Parameter "action" must be a string or a number
> GET /upstream/status
< 200 [{...,"enabled":true,...,"state":"up",...}]



=== TEST 17: a parameter given twice, even with the same value, wherever it stands
--- talk
> POST /upstream/add?port=1&port=2
< 400 Parameter "port" is given more than once
> POST /upstream/add port=1&port=1
< 400 Parameter "port" is given more than once
> POST /upstream/add port=1&p%6Frt=2
< 400 Parameter "port" is given more than once
> POST /upstream/add?port=1 port=2
< 400 Parameter "port" is given more than once
> POST /upstream/add?port=1 {"port":2}
< 400 Parameter "port" is given more than once
> POST /upstream/add {"port":1,"port":2}
< 400 Parameter "port" is given more than once
> POST /upstream/add {"port":1,"host":"10.0.0.1","host":"10.0.0.2"}
< 400 Parameter "host" is given more than once
> POST /upstream/add?ns=backend&ns=backend port=1
< 400 Parameter "ns" is given more than once
> GET /upstream/status?ns=backend&ns=other
< 400 Parameter "ns" is given more than once
> GET /upstream/status
< 200 []



=== TEST 18: a name that is none is refused before it is forgotten
--- talk
> POST /upstream/add port=1&max_con=5
< 400 {"code":400,"message":"Unknown parameter \"max_con\"; ..."}
> POST /upstream/add {"port":1,"namespace":"other"}
< 400 {"code":400,"message":"Unknown parameter \"namespace\"; ..."}
> POST /upstream/add PORT=1
< 400 {"code":400,"message":"Unknown parameter \"PORT\"; ..."}
> GET /upstream/status
< 200 []



=== TEST 19: percent-encoding that is none
--- talk
> POST /upstream/add?port=%
< 400 Malformed percent-encoding in the query string
> POST /upstream/add?port=%3
< 400 Malformed percent-encoding in the query string
> POST /upstream/add?port=%zz
< 400 Malformed percent-encoding in the query string
> POST /upstream/add port=1%u0031
< 400 Malformed percent-encoding in the body
> POST /upstream/add host=10.0.0.1&port=1%
< 400 Malformed percent-encoding in the body
> GET /upstream/status?ns=%GG
< 400 Malformed percent-encoding in the query string
> GET /upstream/status
< 200 []



=== TEST 20: a stray parameter of a GET is no reason to show nothing
--- talk
> GET /upstream/status?_=1763700000&verbose
< 200 []
> GET /upstream/health?_=1763700000
< 200 ...
