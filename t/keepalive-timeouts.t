# Timeouts of requests on kept connections: each request has the whole of its own, and an idle
# connection none but that of registry_keepalive.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/keepalive-backend.pl";

my $S = time_scale();
my $backend = NumberedBackend->new(name => 'a');
my $address = $backend->address;
sub ms { return int($_[0] * 1000 * $S) . 'ms' }

my ($upstreams, $locations) = ('', '');
# Several tries would hide how long one took.
for my $kind (qw(registry stock)) {
    my ($registry, $keep) = $kind eq 'registry' ? ('registry main; ', 'registry_keepalive 8;') : ('', 'keepalive 8;');
    for my $name (qw(late early idle upload shared fastcgi)) {
        $upstreams .= "upstream ${kind}_$name { $registry server $address; $keep }\n";
    }
    my $location = sub { "location = /$kind/$_[0] { $_[2]_pass " . ($_[2] eq 'proxy' ? 'http://' : '') . "${kind}_$_[1]; $_[3] }\n" };
    $locations .= $location->('late', 'late', 'proxy', 'proxy_read_timeout ' . ms(0.6) . ';')
        . $location->('early', 'early', 'proxy', 'proxy_read_timeout ' . ms(0.3) . ';')
        . $location->('idle', 'idle', 'proxy', 'proxy_read_timeout ' . ms(0.3) . '; proxy_send_timeout ' . ms(0.3) . ';')
        . $location->('upload', 'upload', 'proxy', 'proxy_read_timeout ' . ms(0.4) . '; proxy_request_buffering off;')
        . $location->('short', 'shared', 'proxy', 'proxy_read_timeout ' . ms(0.4) . ';')
        . $location->('long', 'shared', 'proxy', 'proxy_read_timeout ' . ms(5) . ';')
        . $location->('nearly', 'shared', 'proxy', 'proxy_read_timeout ' . ms(0.6) . ';')
        . $location->('fastcgi', 'fastcgi', 'fastcgi', 'fastcgi_keep_conn on; fastcgi_param REQUEST_URI $request_uri; fastcgi_read_timeout ' . ms(0.4) . ';');
}
my $node = RegistryTest->nginx(
    workers => 1, http => "registry main 256k { }\n$upstreams", server => qq{
        location /upstream/ { registry_api main; }
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        $locations
    },
);

# Connection and request, or the status.
sub outcome { my ($r) = @_; return $r->{status} == 200 ? number($r) : $r->{status} }
sub get { return $node->get($_[0]) }
sub request_of { my ($r) = @_; return number($r) =~ /\.(\d+)$/ ? $1 : $r->{status} }

subtest 'a response later than proxy_read_timeout' => sub {
    for my $idle (0, 0.1, 0.25) {
        is(get('/registry/late')->{status}, 200, 'a request');
        sleep $idle * $S;
        my $requests = $backend->stats->{requests};
        my $r = get('/registry/late?hang=1');
        is($r->{status}, 504, "then one that has no answer, after $idle s");
        cmp_ok($r->{time}, '>=', 0.59 * $S, 'waits for its whole time');
        cmp_ok($r->{time}, '<', 0.6 * $S + 0.3, 'and no longer') or diag($r->{time});
        is($backend->stats->{requests}, $requests + 1, 'and is sent once');
    }
};

subtest 'a response within proxy_read_timeout' => sub {
    for my $kind (qw(stock registry)) {
        for my $idle (0.15, 0.25) {
            get("/$kind/early?keepalive=0");
            is(request_of(get("/$kind/early")), 1, "$kind: a request on a new connection");
            sleep $idle * $S;
            my $r = get("/$kind/early?delay=" . 0.2 * $S);
            is($r->{status}, 200, "$kind: then one that takes two thirds of the time, after $idle s");
            is(request_of(get("/$kind/early")), request_of($r) + 1, "$kind: and its connection is kept");
        }
    }
};

subtest 'an idle connection knows nothing of it' => sub {
    my $first = number(get('/registry/idle'));
    sleep 0.9 * $S;
    my $second = number(get('/registry/idle'));
    is(int $second, int $first, 'kept three times as long as proxy_read_timeout');
    sleep 0.35 * $S;
    is(int number(get("/registry/idle?delay=" . 0.2 * $S)), int $first, 'and after that a response may take its time');
};

subtest 'an upload that takes longer than proxy_read_timeout' => sub {
    for my $idle (0, 0.25) {
        my $client = $node->client;
        $client->send("GET /registry/upload HTTP/1.1\r\nHost: x\r\n\r\n") if $idle;
        my $first = $idle ? $client->response : undef;
        sleep $idle * $S;
        # In one piece the second request comes in the same turn of nginx' event loop.
        $client->send(($idle ? '' : "GET /registry/upload HTTP/1.1\r\nHost: x\r\n\r\n")
            . "POST /registry/upload?echo=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n");
        $first ||= $client->response;
        for (1 .. 5) { $client->send('x' x 10); sleep 0.13 * $S }
        my $r = $client->response;
        is($r->{status}, 200, "is not cut off, $idle s after another request");
        is($r->{json}{body}, 'x' x 50, 'and arrives');
        is(int number($r), int number($first), 'on the same connection');
    }
    get('/registry/upload');
    my $chunked = $node->client;
    $chunked->send("POST /registry/upload?echo=1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (1 .. 5) { $chunked->send("a\r\n" . 'y' x 10 . "\r\n"); sleep 0.11 * $S }
    $chunked->send("0\r\n\r\n");
    my $r = $chunked->response;
    is("$r->{status} $r->{json}{body}", '200 ' . 'y' x 50, 'nor is a chunked one');
};

subtest 'locations with other timeouts share a connection' => sub {
    get('/registry/long');
    my $r = get('/registry/short?hang=1');
    is($r->{status}, 504, 'the short one after the long one');
    cmp_ok($r->{time}, '<', 0.4 * $S + 0.3, 'goes by its own') or diag($r->{time});
    cmp_ok($r->{time}, '>=', 0.39 * $S, 'all of it');
    get('/registry/short');
    is(get("/registry/long?delay=" . 0.7 * $S)->{status}, 200, 'the long one after the short one, too');
    get('/registry/nearly');
    $r = get('/registry/short?hang=1');
    cmp_ok($r->{time}, '<', 0.4 * $S + 0.15, 'and the short one after one that is a little longer') or diag($r->{time});
};

subtest 'FastCGI' => sub {
    for my $kind (qw(stock registry)) {
        get("/$kind/fastcgi");
        sleep 0.2 * $S;
        is(request_of(get("/$kind/fastcgi?delay=" . 0.3 * $S)), 2, "$kind: within fastcgi_read_timeout, on the kept connection");
        my $r = get("/$kind/fastcgi?hang=1");
        is($r->{status}, 504, "$kind: later");
        cmp_ok($r->{time}, '>=', 0.39 * $S, "$kind: in time");
        cmp_ok($r->{time}, '<', 0.4 * $S + 0.3, "$kind: in time");
    }
};

nothing_in_flight($node, map { "registry_$_" } qw(late early idle upload shared fastcgi));
$node->log_is_clean;
done_testing;
