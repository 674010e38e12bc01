# A worker that is killed (SIGKILL) leaves nothing behind: its requests are taken back,
# those of the others stay.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $node;
my $killed;
my @backends = map { RegistryTest->backend(name => $_) } qw(a b);

sub fresh {
    my ($interval) = @_;
    $killed = 0;
    $node = RegistryTest->nginx(
        workers => 4,
        http => "registry main 1m { heartbeat_ttl 1h; cleanup_interval $interval; }
            upstream backend { registry main; keepalive 4; }
            proxy_http_version 1.1; proxy_set_header Connection ''; proxy_buffering off;",
        server => 'location /upstream/ { registry_api main; }
            location / { proxy_pass http://backend; add_header X-Worker $pid; }',
    );
    api($node, 'add', { host => $_->host, port => $_->port, max_conns => 0 }) for @backends;
    return;
}
sub killing { my ($pid, %opt) = @_; $killed++; return $node->kill_worker($pid, 'KILL', %opt) }
sub clean {
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return $node->log_is_clean(allow => [ [ qr/\[alert\] .*worker process \d+ exited on signal 9/, $killed ] ]);
}
# Under valgrind the new worker is there before it has begun, and joined the zone.
sub joined { return time_scale() == 1 || $node->wait_log(qr/took back/) }
sub idle { return wait_until(sub { connections($node) == 0 }, 10 * time_scale()) }
sub sum { my $sum = 0; $sum += $_->{requests} for @{ status($node)->{data} }; return $sum }

# Opens requests that last for so many seconds, until at least two workers have some.
# Their answers begin at once and say whose they are: { pid => [clients] }.
sub held {
    my ($seconds, $count) = @_;
    $seconds *= time_scale();
    my %by;
    for my $i (1 .. 200) {
        my $client = $node->client;
        $client->send("GET /?size=10000&drip=$seconds HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        my $head = $client->read_some;
        my ($worker) = $head =~ /^X-Worker: (\d+)/m or die "no worker in: $head";
        push @{ $by{$worker} }, $client;
        last if $i >= $count && keys %by > 1;
    }
    return \%by;
}
sub ends_well { my ($client) = @_; return eval { length $client->read_all >= 9000 } }

subtest 'as soon as a worker is replaced its share is gone' => sub {
    fresh('1h');
    my $held = held(2, 12);
    my ($victim, @others) = sort { @{ $held->{$b} } <=> @{ $held->{$a} } } keys %$held;
    my $share = @{ $held->{$victim} };
    my $rest = 0;
    $rest += @{ $held->{$_} } for @others;
    is(connections($node), $share + $rest, 'requests are under way in several workers');
    my $requests = sum();

    ok(killing($victim) && joined(), 'one is killed, another takes its place');
    is(connections($node), $rest, 'what is left are the requests of the others');
    my %counted = map { $_->{addr} => $_->{connections} } @{ status($node)->{data} };
    ok(wait_until(sub { !grep { $_->stats->{active} != $counted{ $_->address } } @backends }), 'server by server');
    is(sum(), $requests, 'the sum of requests stays');
    is(scalar($node->grep_log(qr/\[notice\] .*registry "main": took back the requests of 1 dead worker/)), 1, 'the log tells of it');
    is($node->get('/')->{status}, 200, 'requests go on');
    is(scalar(grep { ends_well($_) } map { @{ $held->{$_} } } @others), $rest, 'those of the others end well');
    ok(idle(), 'and are counted off');
    clean();
};

subtest 'within one cleanup_interval it is gone even when nobody replaces the worker' => sub {
    fresh(200 * time_scale() . 'ms');
    my $held = held(4, 12);
    my ($victim, @others) = sort { @{ $held->{$b} } <=> @{ $held->{$a} } } keys %$held;
    my $rest = 0;
    $rest += @{ $held->{$_} } for @others;
    # A master that is stopped replaces nobody.
    kill 'STOP', $node->pid;
    $killed++;
    kill 'KILL', $victim;
    # While it dies the kernel may still give it a connection.
    wait_until(sub { !alive($victim) });
    ok(wait_until(sub { connections($node) == $rest }), 'the others take its share back') or diag(connections($node) . " not $rest");
    like($node->wait_log(qr/took back/), qr/\[notice\] .*registry "main": took back the requests of 1 dead worker/, 'the log tells of it');
    sleep 0.5 * time_scale();
    is(connections($node), $rest, 'once, and not more than its own');
    is(scalar($node->grep_log(qr/took back/)), 1, 'as the log says');
    kill 'CONT', $node->pid;
    ok(wait_until(sub { $node->workers == 4 }), 'the master goes on and replaces it');
    is(connections($node), $rest, 'which changes nothing');
    $_->close for map { @$_ } values %$held;
    ok(idle(), 'in the end no count is left');
    clean();
};

subtest 'max_conns is not used up by the dead' => sub {
    fresh('1h');
    api($node, 'remove', { host => $backends[1]->host, port => $backends[1]->port });
    my $held = held(20, 6);
    my ($victim) = sort { @{ $held->{$b} } <=> @{ $held->{$a} } } keys %$held;
    my $count = connections($node);
    api($node, 'add', { host => $backends[0]->host, port => $backends[0]->port, max_conns => $count });
    is($node->get('/')->{status}, 502, 'a server with max_conns requests takes no more');
    killing($victim);
    joined();
    is($node->get('/')->{status}, 200, 'until a worker that had some of them is dead');
    $_->close for map { @$_ } values %$held;
    ok(idle(), 'no count is left');
    clean();
};

subtest 'killed again and again under load' => sub {
    fresh('100ms');
    my $load = load_start(conns => 16, procs => 2, url => [ map { $node->url($_) } '/', '/?delay=0.01', '/?delay=0.1' ]);
    my ($rounds, $bad) = (10, 0);
    for my $round (1 .. $rounds) {
        my @workers = $node->workers;
        killing($workers[ $round % @workers ]);
        # Changes of the registry in between, by whichever worker.
        my $port = 1 + $round;
        $bad++ if api($node, 'add', { host => '127.0.0.9', port => $port, weight => 0 })->{status} != 200;
    }
    my $sum = load_stop($load);
    is($bad, 0, 'all the while the API works');
    is_deeply([ keys %{ $sum->{status} } ], [200], 'what was answered was answered well') or diag(explain($sum));
    ok($sum->{failed} <= 16 * $rounds, 'requests of the killed are the only ones that fail') or diag(explain($sum));
    ok(idle(), 'no count is left');
    is(status($node)->{total}, 2 + $rounds, 'no server is lost');
    ok(wait_until(sub { !grep { $_->stats->{active} } @backends }), 'no request is left at the servers');

    api($node, 'reset', {});
    $sum = parallel(16, 400, $node->url('/'), procs => 2);
    is_deeply($sum->{status}, { 200 => 400 }, 'after it all is well');
    is(sum(), 400, 'and counted');
    ok(idle(), 'without a rest');
    clean();
};

subtest 'all workers killed at once' => sub {
    fresh('1h');
    my $held = held(20, 10);
    my @workers = $node->workers;
    is(connections($node), scalar(map { @$_ } values %$held), 'requests are under way');
    $killed += @workers;
    kill 'KILL', @workers;
    my %old = map { $_ => 1 } @workers;
    ok(wait_until(sub { 4 == grep { !$old{$_} } $node->workers }), 'all are replaced');
    is(connections($node), 0, 'no count is left');
    is(status($node)->{total}, 2, 'the servers are there');
    is($node->get('/')->{status}, 200, 'and take requests');
    ok(idle(), 'which are counted off');
    clean();
};

subtest 'an old worker killed after a reload' => sub {
    fresh('1h');
    my $held = held(20, 8);
    my $all = connections($node);
    ok($node->reload(wait => 'new'), 'requests are under way in old workers');
    is(connections($node), $all, 'and counted');
    my ($victim) = grep { $held->{$_} } $node->old_workers;
    killing($victim, respawn => 0);
    ok($node->reload(wait => 'new'), 'one is killed, and the next workers come');
    is(connections($node), $all - @{ $held->{$victim} }, 'its share is gone') ;
    $_->close for map { @$_ } values %$held;
    ok(idle(), 'in the end no count is left');
    ok(wait_until(sub { !$node->old_workers }), 'nor an old worker');
    clean();
};

done_testing;
