# Many workers share one registry: under load their counts are exact, and end at 0.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my %CONF = (
    workers => 4,
    http => 'registry main 1m { heartbeat_ttl 1h; cleanup_interval 100ms; }
        upstream backend { registry main; registry_balance least_conn; keepalive 8; }
        upstream turns { registry main namespace=backend; registry_balance round_robin; }
        proxy_http_version 1.1; proxy_set_header Connection ""; proxy_read_timeout 10s;',
    server => 'location /upstream/ { registry_api main; }
        location / { proxy_pass http://backend; proxy_next_upstream error timeout http_503; add_header X-Worker $pid; }
        location /turns/ { proxy_pass http://turns; }',
);
my $node = RegistryTest->nginx(%CONF);
my @backends = map { RegistryTest->backend(name => $_) } qw(a b c);
sub here { my ($backend) = @_; return { host => $backend->host, port => $backend->port } }
sub idle { my ($on) = @_; return wait_until(sub { connections($on || $node) == 0 }, 10 * time_scale()) }
sub sum {
    my ($field) = @_;
    my $sum = 0;
    $sum += $_->{$field} for @{ status($node)->{data} };
    return $sum;
}
sub fresh { api($node, 'reset', {}); $_->reset_stats for @backends; return }

api($node, 'add', { %{ here($_) }, max_conns => 0 }) for @backends;
api($node, 'weight', { %{ here($backends[0]) }, weight => 2 });

subtest 'requests sum up, and no count is left' => sub {
    fresh();
    my $sum = parallel(32, 1200, [ map { $node->url($_) } '/', '/?delay=0.01', '/?size=20000', '/turns/' ], procs => 2);
    is_deeply($sum->{status}, { 200 => 1200 }, 'all are answered') or diag(explain($sum->{errors}));
    ok(idle(), 'no count is left');
    is(sum('requests'), 1200, 'each was counted once');
    for my $backend (@backends) {
        my $server = servers($node)->{ $backend->address };
        is($server->{requests}, $backend->stats->{requests}, $backend->name . ': as many as the server has seen');
        ok($server->{requests} > 0, 'and some');
    }
};

subtest 'while they last, counts are what the servers see' => sub {
    fresh();
    my @slow = map { $node->client } 1 .. 20;
    $_->send("GET /?delay=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") for @slow;
    ok(wait_until(sub { my $n = 0; $n += $_->stats->{active} for @backends; $n == 20 }), 'twenty requests under way');
    my $servers = servers($node);
    is($servers->{ $_->address }{connections}, $_->stats->{active}, $_->name . ': counted') for @backends;
    is(join(' ', map { $servers->{ $_->address }{connections} } @backends), '10 5 5', 'shared by weight, over all workers');
    $_->response for @slow;
    ok(idle(), 'then 0');
};

subtest 'retries, failures and given up requests' => sub {
    fresh();
    my $sum = parallel(24, 600, [ map { $node->url($_) } '/?delay=0.03', '/', '/?status=404', '/?status=500', '/?cut=3&size=99', '/?keepalive=0' ],
        procs => 2, abort_share => 0.3, abort_after => 0.005);
    is(grep({ !/^(?:200|404|500)$/ } keys %{ $sum->{status} }), 0, 'every answer is one that was asked for') or diag(explain($sum));
    is_deeply([ keys %{ $sum->{errors} } ], ['closed within the body (length)'], 'those that the server cuts short are cut short')
        or diag(explain($sum));
    ok($sum->{aborted} > 0, 'some were given up');
    ok(idle(), 'no count is left');
    ok(wait_until(sub { my $n = 0; $n += $_->stats->{active} for @backends; $n == 0 }), 'nor is any request');

    fresh();
    $backends[0]->set(status => 503);
    $sum = parallel(16, 300, $node->url('/'), procs => 2);
    $backends[0]->clear;
    is_deeply($sum->{status}, { 200 => 300 }, 'requests that one server fails are answered by the others') or diag(explain($sum));
    is(sum('requests'), 300 + $backends[0]->stats->{requests}, 'each try is counted as a request');
    is(servers($node)->{ $backends[0]->address }{fails}, $backends[0]->stats->{requests}, 'and each failure as one');
    ok(idle(), 'no count is left');
    api($node, 'reset', {});
};

subtest 'servers come and go under load' => sub {
    my $load = load_start(conns => 16, procs => 2, url => [ map { $node->url($_) } '/', '/?delay=0.02' ]);
    my $kept = $node->client;
    my $bad = 0;
    for my $round (1 .. 15) {
        for my $step ([ remove => $backends[1] ], [ toggle => $backends[2], action => 'disable' ],
            [ add => $backends[1] ], [ toggle => $backends[2], action => 'enable' ], [ weight => $backends[0], weight => $round ],
            [ drain => $backends[0] ], [ toggle => $backends[0], action => 'enable' ]) {
            my ($endpoint, $backend, %more) = @$step;
            my $reply = $kept->post("/upstream/$endpoint", body => form({ %{ here($backend) }, %more }));
            $bad++ if $reply->{status} != 200;
        }
        sleep 0.01;
    }
    my $sum = load_stop($load);
    is($bad, 0, 'all changes were accepted');
    is_deeply([ $sum->{status}, $sum->{errors} ], [ { 200 => $sum->{requests} }, {} ], 'and every request answered') or diag(explain($sum));
    ok(idle(), 'no count is left');
    api($node, 'weight', { %{ here($backends[0]) }, weight => 2 });
};

subtest 'changes by all workers at once: none is lost' => sub {
    my @urls = map { $node->url("/upstream/add?ns=many&host=127.0.0.9&port=$_") } 1 .. 200;
    my $sum = parallel(16, 200, \@urls, method => 'POST', keepalive => 0);
    is_deeply($sum->{status}, { 200 => 200 }, '200 servers are added') or diag(explain($sum));
    is($node->get('/upstream/status?ns=many')->{json}{total}, 200, 'and there');
    s/add/remove/ for @urls;
    $sum = parallel(16, 200, \@urls, method => 'POST', keepalive => 0);
    is_deeply($sum->{status}, { 200 => 200 }, 'and removed');
    is($node->get('/upstream/status?ns=many')->{status}, 404, 'to the last');
};

subtest 'a worker that stands still holds up no other' => sub {
    # Connections that are open already, by the worker that has them: a new one might be
    # given to the worker that stands still.
    my (%by, $i);
    while (keys %by < 2 && $i++ < 200) {
        my $client = $node->client;
        push @{ $by{ $client->get('/')->{headers}{'x-worker'} } }, $client;
    }
    my ($stopped, @others) = keys %by;
    kill 'STOP', $stopped;
    ok(wait_until(sub { slurp("/proc/$stopped/stat") =~ /.*\)\s+T/s }), 'a worker is stopped');
    my @clients = map { @{ $by{$_} } } @others;
    my @answers = map { map { $_->get('/')->{status} } @clients } 1 .. 20;
    is(grep({ $_ != 200 } @answers), 0, 'the others answer requests');
    is($clients[0]->post('/upstream/refresh', body => form(here($backends[0])))->{status}, 200, 'and the API');
    my $data = $clients[0]->get('/upstream/status')->{json}{data};
    is(grep({ $_->{connections} } @$data), 0, 'no count is left');

    my $late = $by{$stopped}[0];
    $late->send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    kill 'CONT', $stopped;
    is($late->response->{status}, 200, 'let go on, it answers what has come meanwhile');
    my $sum = parallel(16, 200, $node->url('/'), procs => 2);
    is_deeply($sum->{status}, { 200 => 200 }, 'and all answer requests');
    ok(idle(), 'no count is left');
};

subtest 'quit under load ends in good order' => sub {
    my $load = load_start(conns => 12, procs => 2, url => [ map { $node->url($_) } '/', '/?delay=0.1' ]);
    ok($node->quit, 'it quits');
    my $sum = load_stop($load);
    is_deeply([ keys %{ $sum->{status} } ], [200], 'what was answered was answered well') or diag(explain($sum));
    is(grep({ !/^connect: Connection refused|reset/ } keys %{ $sum->{errors} }), 0, 'what was not found nobody listening') or diag(explain($sum));
};
$node->log_is_clean;

subtest 'stop (TERM) under load leaves no alarm' => sub {
    my $other = RegistryTest->nginx(%CONF);
    api($other, 'add', here($_)) for @backends;
    my $load = load_start(conns => 12, procs => 2, url => [ map { $other->url($_) } '/', '/?delay=0.1' ]);
    ok($other->stop, 'it stops');
    load_stop($load);
    $other->log_is_clean;
};

done_testing;
