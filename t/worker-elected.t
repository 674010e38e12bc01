# One worker at a time does the cleanup; when it dies or is replaced, another takes over.
# Who it is the log tells: the process that says that a silent server was removed.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $TTL = 0.1 * time_scale();
my $backend = RegistryTest->backend(name => 'a');
my $port = 0;
my ($node, $killed);

sub fresh {
    my (%opt) = @_;
    $killed = 0;
    $node = RegistryTest->nginx(
        workers => $opt{workers} || 4,
        http => 'registry main 1m { heartbeat_ttl ' . 1000 * $TTL . 'ms; cleanup_interval ' . 100 * time_scale() . 'ms; on_expire remove; }
            registry steady 256k { heartbeat_ttl 1h; cleanup_interval 200ms; }
            upstream backend { registry steady; }',
        server => 'location /upstream/ { registry_api main namespace=short; }
            location /steady/ { registry_api steady; }
            location / { proxy_pass http://backend; add_header X-Worker $pid; }',
    );
    $node->post('/steady/add', body => form({ host => $backend->host, port => $backend->port }));
    return;
}
# Lets a server expire and returns the process that removed it; nothing when none did.
sub elected {
    my $from = $node->log_size;
    $port++;
    api($node, 'add', { host => '127.0.0.9', port => $port });
    my $line = $node->wait_log(qr/server 127\.0\.0\.9:$port removed/, 10 * time_scale(), $from) or return;
    my ($pid) = $line =~ /\] (\d+)#/;
    return $pid;
}
sub is_worker { my ($pid) = @_; return scalar grep { $_ == $pid } $node->workers }
sub clean {
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return $node->log_is_clean(allow => [ [ qr/\[alert\] .*worker process \d+ exited on signal 9/, $killed ] ]);
}

subtest 'one worker does it, and goes on doing it' => sub {
    fresh();
    my $first = elected();
    ok(is_worker($first), 'a worker removes a silent server');
    is_deeply([ map { elected() } 1 .. 3 ], [ ($first) x 3 ], 'and all that fall silent after it');
    $node->log_is_clean;
};


subtest 'killed, it is followed by another' => sub {
    fresh();
    my %seen;
    for my $round (1 .. 4) {
        my $pid = elected();
        ok($pid && is_worker($pid), "a worker is elected, round $round") or last;
        ok(!$seen{$pid}++, 'another than before');
        $killed++;
        $node->kill_worker($pid);
    }
    ok(is_worker(elected()), 'after the last kill as well');
    clean();
};


subtest 'killed together with its followers' => sub {
    fresh();
    elected();
    my @workers = $node->workers;
    my %old = map { $_ => 1 } @workers;
    $killed += @workers;
    kill 'KILL', @workers;
    ok(wait_until(sub { 4 == grep { !$old{$_} } $node->workers }), 'all workers are replaced');
    my $pid = elected();
    ok($pid && !$old{$pid}, 'one of the new is elected');
    clean();
};


subtest 'killed while no other takes its place, another worker is elected' => sub {
    fresh();
    my $first = elected();
    kill 'STOP', $node->pid;    # a master that is stopped replaces nobody
    $killed++;
    kill 'KILL', $first;
    wait_until(sub { !alive($first) });
    my $second = elected();
    ok($second && $second != $first && is_worker($second), 'one of those that are left');
    kill 'CONT', $node->pid;
    ok(wait_until(sub { $node->workers == 4 }), 'the master replaces the first');
    is(elected(), $second, 'the second stays elected');
    clean();
};


subtest 'replaced by a reload, it is followed by a new worker' => sub {
    fresh();
    for my $round (1 .. 3) {
        my $old = elected();
        ok($node->reload, "reload $round");
        my $new = elected();
        ok($new && $new != $old && is_worker($new), 'a new worker is elected');
    }
    $node->log_is_clean;
};


subtest 'stopped for a while, it goes on after that' => sub {
    fresh(workers => 2);
    my $elected = elected();
    my ($other) = grep { $_ != $elected } $node->workers;
    # A connection to the other: new ones might go to the one that stands still.
    my $client;
    for (1 .. 300) {
        $client = $node->client;
        last if $client->get('/')->{headers}{'x-worker'} == $other;
    }
    kill 'STOP', $elected;
    my $from = $node->log_size;
    $port++;
    $client->post('/upstream/add', body => form({ host => '127.0.0.9', port => $port }));
    sleep 2 * $TTL;
    my $data = $client->get('/upstream/status')->{json}{data};
    is(grep({ $_->{state} eq 'up' } @$data), 0, 'a silent server has expired all the same');
    kill 'CONT', $elected;
    ok($node->wait_log(qr/server 127\.0\.0\.9:$port removed/, 10 * time_scale(), $from), 'in the end it is removed');
    ok(is_worker(elected()), 'and the cleanup goes on');
    is(scalar($node->grep_log(qr/server 127\.0\.0\.9:$port removed/, $from)), 1, 'each server once');
    $node->log_is_clean;
};


subtest 'a worker that stands still while others replace it is elected no more' => sub {
    fresh(workers => 2);
    my $old = elected();
    my %before = map { $_ => 1 } $node->workers;
    kill 'STOP', $old;
    $node->reload(wait => 0);
    ok(wait_until(sub { 2 == grep { !$before{$_} } $node->workers }), 'a reload, which the elected worker does not hear of');
    ok(wait_until(sub { 1 == grep { $before{$_} && alive($_) } keys %before }), 'while the other old worker goes');
    my $new = elected();
    ok($new && !$before{$new}, 'a new worker is elected');
    kill 'CONT', $old;
    ok(wait_until(sub { !alive($old) }), 'let go on, the old one goes too');
    is(elected(), $new, 'which changes nothing');
    $node->log_is_clean;
};

done_testing;
