# Several requests on one connection, sent before the first is answered.

use FindBin;
use Test::Nginx::Socket;
require "$FindBin::Bin/api-talk.pl";

plan tests => 242;

run_tests();

__DATA__

=== TEST 1: each gets its answer, in their order, and sees what those before it did
--- pipelined_requests eval
["POST /upstream/add\nport=1", "POST /upstream/add\nport=2&weight=3", "POST /upstream/remove\nport=1",
 "GET /upstream/status", "GET /upstream/health"]
--- error_code eval
[200, 200, 200, 200, 200]
--- response_body eval
[qr/^\{"code":200,.*"addr":"127.0.0.1:1"/, qr/"addr":"127.0.0.1:2".*"weight":3/,
 qr/"data":\{"addr":"127.0.0.1:1"\}/, qr/"data":\[\{"addr":"127.0.0.1:2"[^{]*\}\],"total":1,/,
 qr/"status":"healthy","data":\{"total_servers":1,/]



=== TEST 2: errors in the middle leave the connection usable
--- pipelined_requests eval
["POST /upstream/add\nport=0", "POST /upstream/add\nport=1", "GET /upstream/add?port=2",
 "POST /upstream/nonsense\nport=3", "PUT /upstream/add\nport=4", "POST /upstream/remove\nport=5",
 "POST /upstream/add\nport=1%", "GET /upstream/status"]
--- error_code eval
[400, 200, 405, 404, 405, 404, 400, 200]
--- response_body eval
[qr/^\{"code":400,/, qr/^\{"code":200,/, qr/^\{"code":405,/, qr/^\{"code":404,/, qr/^\{"code":405,/,
 qr/^\{"code":404,/, qr/^\{"code":400,/, qr/"data":\[\{"addr":"127.0.0.1:1"[^{]*\}\],"total":1,/]



=== TEST 3: a body that is a little too long is read past
--- pipelined_requests eval
["POST /upstream/add\n" . 'x' x 65_537, "POST /upstream/add\nport=1", "GET /upstream/status"]
--- error_code eval
[413, 200, 200]
--- response_body eval
[qr/^\{"code":413,/, qr/^\{"code":200,/, qr/"total":1,/]



=== TEST 4: bodies that nobody asked for are read past
--- pipelined_requests eval
["GET /upstream/status\nport=1", "DELETE /upstream/add\n" . 'x' x 30_000, "PATCH /upstream/add?port=1",
 "OPTIONS /upstream/add\nport=2", "GET /upstream/health"]
--- error_code eval
[200, 405, 405, 405, 200]
--- response_body eval
[qr/"total":0,/, qr/^\{"code":405,/, qr/^\{"code":405,/, qr/^\{"code":405,/, qr/"total_servers":0,/]



=== TEST 5: a hundred at once
--- pipelined_requests eval
[map({ "POST /upstream/add\nport=$_" } 1 .. 98), "GET /upstream/health", "POST /upstream/reset"]
--- error_code eval
[map { 200 } 1 .. 100]
--- response_body eval
[map({ qr/"addr":"127.0.0.1:$_"/ } 1 .. 98), qr/"total_servers":98,/, qr/"servers_reset":98\b/]
