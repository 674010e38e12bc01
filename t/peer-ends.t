# However a request ends, it is given back exactly once: to an upstream as it is, to one
# with keepalive, and to one with a zone line.
#
# One more request is in flight all the time, on the same server: given back twice, a
# request would take that one's place.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my @kinds = qw(plain kept zoned);
my $backend = RegistryTest->backend(name => 'a');
my $address = $backend->address;
my $refused = RegistryTest->backend(name => 'refused', start => 0)->address;

my ($http, $server) = ("registry main 256k { }\n", '');
for my $kind (@kinds) {
    my $lines = { plain => '', kept => 'keepalive 4;', zoned => "zone $kind 64k;" }->{$kind};
    $http .= "upstream $kind { server $address; registry main; $lines }\n";
    $server .= qq{
        location /$kind/ {
            proxy_pass http://$kind/;
            location /$kind/old/        { proxy_pass http://$kind/; proxy_http_version 1.0; }
            location /$kind/small/      { proxy_pass http://$kind/; proxy_buffer_size 1k; proxy_buffers 4 1k; proxy_busy_buffers_size 2k; }
            location /$kind/short/      { proxy_pass http://$kind/; proxy_read_timeout 150ms; proxy_send_timeout 150ms; }
            location /$kind/ignores/    { proxy_pass http://$kind/; proxy_ignore_client_abort on; }
            location /$kind/unbuffered/ { proxy_pass http://$kind/; proxy_buffering off; send_timeout 200ms; }
            location /$kind/upload/     { proxy_pass http://$kind/; proxy_request_buffering off; client_max_body_size 20m; }
            location /$kind/unbindable/ { proxy_pass http://$kind/; proxy_bind 192.0.2.1; }
            location /$kind/page/       { proxy_pass http://$kind/; proxy_intercept_errors on; error_page 503 =200 /page; }
            location /$kind/second/     { proxy_pass http://$kind/; proxy_intercept_errors on; error_page 503 = /$kind/?hang=1; }
            location /$kind/to_nobody/  { proxy_pass http://$kind/; proxy_intercept_errors on; error_page 503 = /refused; }
            location /$kind/socket/     {
                proxy_pass http://$kind/;
                proxy_set_header Upgrade \$http_upgrade;
                proxy_set_header Connection upgrade;
                proxy_read_timeout 5s;
                location /$kind/socket/idle/ {
                    proxy_pass http://$kind/;
                    proxy_set_header Upgrade \$http_upgrade;
                    proxy_set_header Connection upgrade;
                    proxy_read_timeout 150ms;
                }
            }
        }
    };
}
my $node = RegistryTest->nginx(
    workers => 1,
    http => "$http upstream refused { registry main; server $refused; }\n",
    server => qq{
        location /upstream/ { registry_api main; }
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        location = /page    { return 200 "page"; }
        location = /refused { proxy_pass http://refused; }
        $server
    },
);

my $kind;
my $anchor;

sub begin {
    my ($path, $method, %opt) = @_;
    my $client = $node->client;
    $client->send(RegistryTest::Client::format_request($method || 'GET', "/$kind$path", %opt));
    return $client;
}

# Waits until so many requests are in flight besides the one that always is.
sub in_flight {
    my ($count, $what) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return ok(wait_until(sub { connections($node, $kind) == 1 + $count }), "$kind: $what")
        || diag('in flight: ' . connections($node, $kind));
}
sub ends { my ($what) = @_; local $Test::Builder::Level = $Test::Builder::Level + 1; return in_flight(0, "$what: it ends") }

sub answers_with {
    my ($path, $expected, $what, $method, %opt) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $r = RegistryTest::Client::http($method || 'GET', $node->url("/$kind$path"), %opt);
    is($r->{status} || $r->{error}, $expected, "$kind: $what");
    ends($what);
    return $r;
}

sub upgrade {
    my ($path) = @_;
    my $client = begin($path, 'GET', headers => { Connection => 'Upgrade', Upgrade => 'websocket' });
    is($client->response->{status}, 101, "$kind: a WebSocket opens");
    return $client;
}

for (@kinds) {
    $kind = $_;
    $anchor = begin('/?hang=1');
    in_flight(0, 'the request that is always there');

    answers_with('/', 200, 'a plain one');
    answers_with('/', 200, 'HEAD', 'HEAD');
    answers_with('/?status=204', 204, 'without a body');
    answers_with('/?status=500', 500, 'an error');
    answers_with('/?chunked=1&size=100000', 200, 'chunks');
    answers_with('/?size=3000000', 200, 'a long response');
    answers_with('/old/?size=100000', 200, 'HTTP/1.0 upstream');
    answers_with('/old/?keepalive=0', 200, 'HTTP/1.0 upstream, closed by the server');
    answers_with('/unbuffered/?size=1000000', 200, 'proxy_buffering off');
    is(answers_with('/?echo=1', 200, 'a body', 'POST', body => 'x' x 100_000)->{json}{body}, 'x' x 100_000, "$kind: which arrives");

    # Ended by the server
    answers_with('/?close=1', 502, 'closed without an answer');
    answers_with('/?reset=1', 502, 'reset');
    like(answers_with('/?cut=10&size=1000', 'closed within the body (length)', 'killed half way')->{error}, qr/body/, "$kind: the client sees it");
    answers_with('/unbuffered/?cut=10&size=1000', 'closed within the body (length)', 'killed half way, unbuffered');
    answers_with('/?cut=10&size=1000&chunked=1', 'closed within the body (chunk_size)', 'killed half way, chunked');
    answers_with('/small/?header=X:' . 'x' x 2000, 502, 'too large headers');
    answers_with('/?header=Bad%00Name:x', 502, 'malformed headers');
    answers_with('/short/?hang=1', 504, 'no answer in time');
    answers_with('/short/?size=100&drip=2', 'closed within the body (length)', 'no more of the body in time');

    # Ended by the client
    for my $how (qw(close reset)) {
        my $client = begin('/?hang=1');
        in_flight(1, 'one more waits');
        $client->$how;
        ends("$how while waiting");

        for my $path (qw(/ /unbuffered/)) {
            $client = begin("$path?size=1000000&drip=1");
            $client->read_some;
            in_flight(1, "${path}: one is being answered");
            $client->$how;
            ends("${path}: $how while reading");
        }

    }
    $backend->pause;
    my $client = begin('/ignores/');
    in_flight(1, 'one more waits');
    $client->close;
    is(join(' ', map { connections($node, $kind) } 1 .. 5), '2 2 2 2 2', "$kind: proxy_ignore_client_abort: close does not end it");
    $backend->resume;
    ends('close, and the server has answered');
    $client = begin('/unbuffered/?size=20000000');
    in_flight(1, 'one that the client does not read');
    ends('send_timeout');
    $client->close;

    # A body that comes bit by bit
    $client = begin('/upload/?echo=1', 'POST', headers => { 'Transfer-Encoding' => 'chunked', 'Content-Type' => 'text/plain' });
    $client->send("5\r\nhello\r\n");
    in_flight(1, 'proxy_request_buffering off: in flight while the body comes');
    $client->send("6\r\n world\r\n0\r\n\r\n");
    is($client->response->{json}{body}, 'hello world', "$kind: the server has all of it");
    ends('proxy_request_buffering off');
    $client = begin('/upload/', 'POST', headers => { 'Content-Length' => 1000 });
    $client->send('half of it');
    in_flight(1, 'a body of which half has come');
    $client->close;
    ends('close while sending the body');
    $client = begin('/', 'POST', headers => { 'Content-Length' => 1000 });
    $client->send('half of it');
    $client->close;
    ends('close while sending a buffered body');

    # To another location
    is(answers_with('/page/?status=503', 200, 'error_page')->{body}, 'page', "$kind: the page");
    answers_with('/to_nobody/?status=503', 502, 'error_page to another upstream, which refuses');
    $client = begin('/second/?status=503');
    in_flight(1, 'error_page to another proxied location: only the second is in flight');
    ok(wait_until(sub { $backend->stats->{active} == 2 }), "$kind: at the server too");
    $client->close;
    ends('error_page to another proxied location');

    # A connection that can't even begin (with keepalive there is one already)
    answers_with('/unbindable/', 500, 'proxy_bind to an address that is not there') if $kind ne 'kept';

    # Upgraded
    $client = upgrade('/socket/');
    in_flight(1, 'it is in flight');
    $client->send('ping');
    is($client->read_some, 'ping', "$kind: bytes go both ways");
    in_flight(1, 'still');
    $client->close;
    ends('the client closes it');
    $client = upgrade('/socket/idle/');
    is($client->read_some, undef, "$kind: an idle one is closed by nginx");
    ends('proxy_read_timeout');
    $client->close;

    $anchor->close;
    ok(wait_until(sub { connections($node, $kind) == 0 }), "$kind: then none is in flight");
}

subtest 'the server ends everything' => sub {
    for (@kinds) {
        $kind = $_;
        my @sockets = map { upgrade('/socket/') } 1 .. 2;
        my $waiting = begin('/?hang=1');
        my $reading = begin('/?size=1000&drip=3');
        in_flight(3, 'two WebSockets and two requests');
        $backend->kill;
        is($_->read_some, undef, "$kind: a WebSocket is closed") for @sockets;
        is($waiting->response->{status}, 502, "$kind: who waited has a 502");
        ok(wait_until(sub { connections($node, $kind) == 0 }), "$kind: none is in flight");
        $backend->start;
    }
};

is(scalar($node->grep_log(qr/\[crit\].*bind\(192\.0\.2\.1\) failed/)), 2, 'a bind that fails is told');
$node->log_is_clean;
done_testing;
