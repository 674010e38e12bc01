# drain with wait: the answer comes when the server has finished its requests, or the time is up.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $WAIT = 1.5 * time_scale();
my $node = RegistryTest->nginx(
    workers => 2,
    http => 'registry main 256k { heartbeat_ttl 1h; } upstream backend { registry main; }
        server { listen 127.0.0.1:%%PORT_get%%; location /upstream/ { registry_api main allow_get; } }',
    server => 'location /upstream/ { registry_api main; } location / { proxy_pass http://backend; }',
);
my $backend = RegistryTest->backend(name => 'a');
my %a = (host => $backend->host, port => $backend->port);

sub server { return servers($node)->{ $backend->address } }
sub now_on { my ($n) = @_; return wait_until(sub { server()->{connections} == $n }) }

# A request that is on the server for so many seconds.
sub slow {
    my ($seconds) = @_;
    my $client = $node->client;
    $client->send("GET /?delay=$seconds HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    return $client;
}

# Sends a drain that waits so long; its answer is read with ->response.
sub drain {
    my ($wait, %opt) = @_;
    my $client = $node->client;
    my $body = form({ %a, wait => $wait });
    $client->send("POST /upstream/drain HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        . 'Content-Length: ' . length($body) . "\r\n\r\n$body" . ($opt{and} || ''));
    return $client;
}

sub afresh { api($node, add => \%a); api($node, toggle => { %a, action => 'enable' }); return }

sub said {
    my ($r) = @_;
    return "$r->{status} " . ($r->{json}{data} ? "$r->{json}{data}{addr} $r->{json}{data}{connections}" : $r->{json}{message} // $r->{error});
}
my $left = '200 ' . $backend->address;

subtest 'a server without requests has drained' => sub {
    afresh();
    my $r = api($node, drain => { %a, wait => '1h' });
    is(said($r), "$left 0", 'the answer');
    cmp_ok($r->{time}, '<', 1 * time_scale(), 'comes at once');
    is(server()->{state}, 'draining', 'it is draining');
};

subtest 'the answer comes with the end of the last request' => sub {
    afresh();
    my @slow = map { slow($_) } 0.2, 0.5, 0.2;
    ok(now_on(3), 'three requests');
    my $start = time;
    my $drain = drain('1h');
    ok(wait_until(sub { server()->{state} eq 'draining' }), 'it drains at once');
    is($node->get('/')->{status}, 502, 'takes no more requests');
    is(said($drain->response), "$left 0", 'and the answer is that nothing is left');
    my $took = time - $start;
    is($_->response->{status}, 200, 'a request') for @slow;
    cmp_ok($took, '>', 0.3, 'not before');
    cmp_ok($took, '<', 0.5 + 1 * time_scale(), 'nor long after');
    is(said($drain->post('/upstream/drain', body => form(\%a))), "$left 0", 'the connection is good for more');
};

subtest 'or when the time is up, with what is left' => sub {
    afresh();
    my @slow = map { slow(2 * time_scale()) } 1 .. 2;
    ok(now_on(2), 'two requests');
    for my $wait ('300ms', '0', '0s') {
        my $r = api($node, drain => { %a, wait => $wait });
        is(said($r), "$left 2", "after $wait");
        cmp_ok($r->{time}, '>=', $wait eq '300ms' ? 0.29 : 0, 'not before');
        cmp_ok($r->{time}, '<', 1.3 * time_scale(), 'nor long after');
    }
    my $r = http('GET', $node->url('/upstream/drain?' . form({ %a, wait => '100ms' }), 'get'));
    is(said($r), "$left 2", 'by GET where that is allowed');
    is(said(api_json($node, drain => { %a, port => 0 + $a{port}, wait => '50ms' })), "$left 2", 'in JSON');
    is($_->response->{status}, 200, 'a request') for @slow;
};

subtest 'the worker goes on meanwhile, and many may wait' => sub {
    afresh();
    my $slow = slow($WAIT);
    ok(now_on(1), 'a request');
    my @drains = map { drain('1h') } 1 .. 50;
    ok(wait_until(sub { server()->{state} eq 'draining' }), 'fifty wait');
    my $slowest = 0;
    for (1 .. 20) {
        my $r = $node->get('/upstream/health');
        $slowest = $r->{time} if $r->{time} > $slowest;
    }
    cmp_ok($slowest, '<', 0.5 * time_scale(), 'others are answered');
    is(said($_->response), "$left 0", 'each is told') for @drains;
    is($slow->response->{status}, 200, 'the request');
};

subtest 'a client that goes away is not waited for' => sub {
    afresh();
    my $slow = slow($WAIT);
    ok(now_on(1), 'a request');
    my $from = () = $node->grep_log(qr/client prematurely closed connection/);
    my @drains = map { drain('1h') } 1 .. 4;
    ok(wait_until(sub { server()->{state} eq 'draining' }), 'four wait');
    $drains[0]->close;
    $drains[1]->reset;
    ok(wait_until(sub { grep { m{"POST /upstream/drain HTTP/1.1" 499 } } split /\n/, slurp($node->dir . '/logs/access.log') }),
        'its request is over');
    is(said($drains[2]->response), "$left 0", 'the others are told');
    $drains[3]->close;
    is($slow->response->{status}, 200, 'the request');
};

subtest 'a drain that is ended ends the wait' => sub {
    afresh();
    my $slow = slow($WAIT);
    ok(now_on(1), 'a request');
    my $drain = drain('1h');
    ok(wait_until(sub { server()->{state} eq 'draining' }), 'it waits');
    api($node, toggle => { %a, action => 'enable' });
    is(said($drain->response), '409 Server was enabled before it had drained: ' . $backend->address, 'by enable');

    $drain = drain('1h');
    ok(wait_until(sub { server()->{state} eq 'draining' }), 'it waits');
    api($node, remove => \%a);
    api($node, add => \%a);
    is(said($drain->response), '404 Server not found: ' . $backend->address, 'by remove, though another has come in its place');
    is($slow->response->{status}, 200, 'the request');
};

subtest 'a worker that is to end answers' => sub {
    afresh();
    my $slow = slow(2 * time_scale());
    ok(now_on(1), 'a request');
    my $drain = drain('1h');
    ok(wait_until(sub { server()->{state} eq 'draining' }), 'it waits');
    my $start = time;
    $node->reload(wait => 'new');
    is(said($drain->response), "$left 1", 'with what is left');
    cmp_ok(time - $start, '<', 1.5 * time_scale(), 'at once');
    is($slow->response->{status}, 200, 'the request');
    ok(wait_until(sub { !$node->old_workers }), 'and is gone');
};

subtest 'what follows on the connection waits its turn' => sub {
    afresh();
    my $slow = slow(0.5);
    ok(now_on(1), 'a request');
    my $client = drain('1h', and => "GET /upstream/health HTTP/1.1\r\nHost: x\r\n\r\n");
    is(said($client->response), "$left 0", 'the drain');
    is($client->response->{json}{status}, 'unhealthy', 'then the next');
    is($slow->response->{status}, 200, 'the request');
};

subtest 'what is no time' => sub {
    afresh();
    for my $bad (qw(soon -1s 1.5s 61m 2h 1d 99999999999999999999s), '', ' ', '1s 1m') {
        is(said(api($node, drain => { %a, wait => $bad })),
            '400 Parameter "wait" must be a time of at most 1h, written as 30s, 500ms or 1m 30s', "\"$bad\"");
    }
    is(server()->{state}, 'up', 'nothing was changed');
    is(said(api($node, drain => { %a, port => 1, wait => '1m' })), '404 Server not found: ' . "$a{host}:1", 'an unknown server is not waited for');
    is(said(api($node, drain => { %a, wait => $_ })), "$left 0", "\"$_\" is") for '1h', '60m', '3600', '1m 30s', '1m30s';
};

$node->log_is_clean;
done_testing;
