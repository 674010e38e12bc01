# api_token: who carries one of the tokens is let in, others learn nothing.

use FindBin;
use Test::Nginx::Socket;
require "$FindBin::Bin/api-talk.pl";

my $HTTP = 'registry main 128k { api_token first-token; api_token second/+=token; }
registry open 128k { }
upstream backend { registry main; }
upstream free { registry open; }
';
my $CONFIG = 'location /upstream/ { registry_api main; }
location /get/ { registry_api main allow_get; }
location = /bound/refresh { registry_api main namespace=backend; }
location /watch/ { registry_api main read_only; }
location /open/ { registry_api open; }
';
add_block_preprocessor(sub {
    my ($block) = @_;
    return if $block->name =~ /: own: /;
    $block->set_value(http_config => $HTTP);
    $block->set_value(config => $CONFIG . ($block->more_config || ''));
});

our $NO = '{"code":401,"message":"A valid token is required: Authorization: Bearer TOKEN, or X-API-Token: TOKEN"}';

# A request without a good token: 401, in JSON, with what to send.
sub refused {
    return CORE::join '', map { "> $_\n< 401 $NO\n+ Content-Type: application/json; charset=utf-8\n"
        . "+ WWW-Authenticate: Bearer realm=\"registry\"\n" } @_;
}

# The same requests, each with a header.
sub with {
    my ($header, $reply) = @_;
    return "> GET /upstream/status\n+ $header\n< $reply\n";
}

our $BIG = 'x' x 70_000;

plan tests => 297;

run_tests();

__DATA__

=== TEST 1: either token, in either header
--- talk eval
main::with('Authorization: Bearer first-token', '200 []')
. main::with('Authorization: Bearer second/+=token', '200 []')
. main::with('X-API-Token: first-token', '200 []')
. main::with('X-API-Token: second/+=token', '200 []')



=== TEST 2: the scheme is of any case, the header's name too, the token is not
--- talk eval
main::with('authorization: bearer first-token', '200 []')
. main::with('AUTHORIZATION: BEARER first-token', '200 []')
. main::with('Authorization: bEaReR   first-token', '200 []')
. main::with('x-api-TOKEN: first-token', '200 []')
. main::with('X-API-Token: First-Token', "401 $main::NO")
. main::with('Authorization: Bearer FIRST-TOKEN', "401 $main::NO")



=== TEST 3: nothing like a token
--- talk eval
main::refused('GET /upstream/status', 'GET /upstream/health', 'POST /upstream/add port=1', 'POST /upstream/reset')
. CORE::join '', map { main::with($_, "401 $main::NO") }
    'Authorization: Bearer', 'Authorization: Bearerfirst-token', 'Authorization: first-token', 'Authorization: Bearer first-toke',
    'Authorization: Bearer first-tokenn', 'Authorization: Bearer first-token second/+=token', 'Authorization: Bearer "first-token"',
    'Authorization: Basic Zmlyc3QtdG9rZW46', 'Authorization: Token first-token', 'Authorization:', 'X-API-Token:',
    'X-API-Token: Bearer first-token', 'X-API-Token: first-token,second/+=token', 'X-API-Token: second/%2B=token',
    'X-API-Tokens: first-token', 'Proxy-Authorization: Bearer first-token', 'Cookie: X-API-Token=first-token',
    'X-API-Token: first-token;', 'X-API-Token: ' . 'a' x 2000



=== TEST 4: both headers: one good token will do
--- talk
> GET /upstream/status
+ Authorization: Bearer first-token
+ X-API-Token: wrong
< 200 []
> GET /upstream/status
+ Authorization: Bearer wrong
+ X-API-Token: first-token
< 200 []
> GET /upstream/status
+ Authorization: Basic dXNlcjpwYXNz
+ X-API-Token: second/+=token
< 200 []



=== TEST 5: X-API-Token repeated: one good token will do
--- talk eval
'> GET /upstream/status
+ X-API-Token: wrong
+ X-API-Token: first-token
< 200 []
> GET /upstream/status
+ X-API-Token: first-token
+ X-API-Token: wrong
< 200 []
> GET /upstream/status
+ X-API-Token: wrong
+ X-API-Token: wrong too
< 401 ' . $main::NO . '
'



=== TEST 6: in no other place
--- talk eval
main::refused('GET /upstream/status?token=first-token', 'GET /upstream/status?api_token=first-token&X-API-Token=first-token',
    'POST /upstream/add {"port":1,"api_token":"first-token"}', 'POST /upstream/add port=1&token=first-token')



=== TEST 7: it comes before everything else that may be wrong
--- talk eval
main::refused('GET /upstream/nothing', 'GET /upstream/', 'GET /upstream/add', 'PUT /upstream/add port=1', 'DELETE /upstream/status',
    'POST /upstream/status', 'POST /upstream/add {"port":', 'POST /upstream/add port=x', 'POST /upstream/add ns=%zz',
    'POST /bound/refresh ns=other&port=1', 'POST /watch/add port=1', 'GET /get/add?port=1', "POST /upstream/add $main::BIG",
    'POST /upstream/refresh port=1')



=== TEST 8: a wrong token is told no more
--- talk eval
CORE::join '', map { "> $_\n+ X-API-Token: wrong\n< 401 $main::NO\n+ WWW-Authenticate: Bearer realm=\"registry\"\n"
        . "+ Content-Type: application/json; charset=utf-8\n" }
    'GET /upstream/nothing', 'GET /upstream/add', "POST /upstream/add $main::BIG", 'PUT /upstream/status'



=== TEST 9: with it everything is as without tokens
--- talk
> POST /upstream/add port=1
+ X-API-Token: first-token
< 200 {"addr":"127.0.0.1:1",...}
> POST /bound/refresh port=1
+ X-API-Token: first-token
< 200 {"addr":"127.0.0.1:1","heartbeat_time":*}
> GET /get/refresh?port=1
+ X-API-Token: first-token
< 200 {"addr":"127.0.0.1:1","heartbeat_time":*}
> GET /upstream/nothing
+ X-API-Token: first-token
< 404 ...
> GET /upstream/add
+ X-API-Token: first-token
< 405 ...
> GET /watch/health
+ X-API-Token: first-token
< 200 ...



=== TEST 10: each registry has its own
--- talk eval
'> GET /open/status
< 200 []
> GET /open/status
+ X-API-Token: wrong
< 200 []
> POST /open/add port=7
+ Authorization: Bearer wrong
< 200 {...}
' . main::refused('GET /upstream/status')



=== TEST 11: HEAD
--- request
HEAD /upstream/status
--- error_code: 401
--- response_headers
WWW-Authenticate: Bearer realm="registry"
Content-Type: application/json; charset=utf-8
--- response_body_like: ^$



=== TEST 12: auth_basic uses Authorization too: the token goes into X-API-Token
--- more_config
location /basic/ { auth_basic people; auth_basic_user_file ../html/passwords; registry_api main; }
--- user_files
>>> passwords
admin:{PLAIN}secret
--- talk eval
"> GET /basic/status
+ Authorization: Basic YWRtaW46c2VjcmV0
+ X-API-Token: first-token
< 200 []
> GET /basic/status
+ Authorization: Basic YWRtaW46c2VjcmV0
< 401 $main::NO
> GET /basic/status
+ Authorization: Basic YWRtaW46d3Jvbmc=
+ X-API-Token: first-token
< 401 ...
+ WWW-Authenticate: Basic realm=\"people\"
+ Content-Type: text/html
> GET /basic/status
+ Authorization: Bearer first-token
< 401 ...
+ WWW-Authenticate: Basic realm=\"people\"
+ Content-Type: text/html
"



=== TEST 13: satisfy any is about stock access control: the token is asked for besides
--- more_config
location /any/ { satisfy any; allow 127.0.0.1; deny all; auth_basic people; auth_basic_user_file ../html/passwords; registry_api main; }
location /all/ { satisfy all; allow 127.0.0.1; deny all; auth_basic people; auth_basic_user_file ../html/passwords; registry_api main; }
location /deny/ { deny all; registry_api main; }
--- user_files
>>> passwords
admin:{PLAIN}secret
--- talk eval
"> GET /any/status
< 401 $main::NO
> GET /any/status
+ Authorization: Bearer first-token
< 200 []
> GET /all/status
+ Authorization: Bearer first-token
< 401 ...
+ WWW-Authenticate: Basic realm=\"people\"
+ Content-Type: text/html
> GET /deny/status
+ Authorization: Bearer first-token
< 403 ...
+ Content-Type: text/html
"



=== TEST 14: error_page does not open a way around it
--- more_config
location /missing/ { error_page 404 = /upstream/status; return 404; }
--- talk eval
main::refused('GET /missing/a') . "> GET /missing/a\n+ X-API-Token: first-token\n< 200 []\n"



=== TEST 15: a subrequest carries what the request does
--- more_config
location /sub/ { auth_request /upstream/health; alias html/; }
--- user_files
>>> in.txt
in
--- talk eval
"> GET /sub/in.txt
< 401 ...
+ WWW-Authenticate: Bearer realm=\"registry\"
+ Content-Type: text/html
> GET /sub/in.txt
+ X-API-Token: first-token
< 200 ...
+ Content-Type: text/plain
"



=== TEST 16: own: a token of 512 characters, and all that are printable
--- http_config eval
"registry main 128k { api_token " . "t" x 512 . "; api_token '!#%&()*+,-./09:<=>?AZ[]^_`az|~'; }\nupstream backend { registry main; }"
--- talk eval
"> GET /upstream/status\n+ X-API-Token: " . "t" x 512 . "\n< 200 []\n"
. "> GET /upstream/status\n+ Authorization: Bearer !#%&()*+,-./09:<=>?AZ[]^_`az|~\n< 200 []\n"
. "> GET /upstream/status\n+ X-API-Token: " . "t" x 511 . "\n< 401 $main::NO\n"



=== TEST 17: own: the same token twice is one
--- http_config
registry main 128k { api_token same; api_token same; }
upstream backend { registry main; }
--- talk
> GET /upstream/status
+ X-API-Token: same
< 200 []
