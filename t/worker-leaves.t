# A worker that is leaving, with long requests still on it: it ends them or cuts them off,
# leaves no count behind, and the cleanup is no longer its work. Who does that the log
# tells: the process that says that a silent server was removed.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $TTL = 0.1 * time_scale();
my $backend = RegistryTest->backend(name => 'a');
my $port = 0;
my $node;

sub fresh {
    my (%opt) = @_;
    $node = RegistryTest->nginx(
        workers => 4,
        main => $opt{main} || '',
        http => 'registry main 1m { heartbeat_ttl ' . 1000 * $TTL . 'ms; cleanup_interval ' . 100 * time_scale() . 'ms; on_expire remove; }
            registry steady 256k { heartbeat_ttl 1h; cleanup_interval 200ms; }
            upstream backend { registry steady; }
            proxy_buffering off; proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $http_connection;',
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
# A request that stays with the worker that takes it; returns that worker too.
sub held {
    my $seconds = $_[0] * time_scale();
    my $client = $node->client;
    $client->send("GET /?size=10000&drip=$seconds HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    my ($pid) = $client->read_some =~ /^X-Worker: (\d+)/m;
    return ($client, $pid);
}
# Requests until a given worker has one of them.
sub held_by {
    my ($worker, $seconds) = @_;
    my @clients;
    for (1 .. 300) {
        my ($client, $pid) = held($seconds);
        push @clients, $client;
        return @clients if $pid == $worker;
    }
    return;
}
sub is_worker { my ($pid) = @_; return scalar grep { $_ == $pid } $node->workers }
sub steady { local $node->{api} = '/steady/'; return connections($node) }

subtest 'kept busy over a reload, it is not elected any more' => sub {
    fresh();
    my $old = elected();
    my @held = held_by($old, 1.5);
    ok(@held, 'the elected worker has a long request');
    ok($node->reload(wait => 'new'), 'a reload');
    ok(scalar(grep { $_ == $old } $node->old_workers), 'it is there still, with its request');
    my $new = elected();
    ok($new && is_worker($new), 'a new worker is elected');
    is(elected(), $new, 'and stays so');
    ok(scalar(grep { $_ == $old } $node->old_workers), 'the old one being there all the time');
    is(scalar(grep { length $_->read_all < 9000 } @held), 0, 'its request ends well');
    ok(wait_until(sub { !$node->old_workers }), 'and it goes at once: timers keep no worker');
    is(elected(), $new, 'which changes nothing');
    ok(wait_until(sub { steady() == 0 }), 'no count is left');
    $node->log_is_clean;
};


subtest 'asked to quit alone, it is followed by another' => sub {
    fresh();
    my $old = elected();
    my @held = held_by($old, 1.2);
    kill 'QUIT', $old;
    ok(wait_until(sub { grep { $_ == $old } $node->old_workers }), 'the elected worker is shutting down, with a long request');
    my $new = elected();
    ok($new && $new != $old && is_worker($new), 'another is elected');
    is(scalar(grep { length $_->read_all < 9000 } @held), 0, 'the request ends well');
    ok(wait_until(sub { !alive($old) }), 'and it goes');
    $node->log_is_clean;
};


subtest 'worker_shutdown_timeout cuts requests off, and counts with them' => sub {
    fresh(main => 'worker_shutdown_timeout 300ms;');
    my @held = map { my ($client) = held(30); $client } 1 .. 6;
    my $upgraded = $node->client;
    $upgraded->send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n");
    is($upgraded->response->{status}, 101, 'an upgraded connection');
    is(steady(), 7, 'and long requests are under way');
    ok($node->reload, 'a reload waits for them no longer than it may');
    is(scalar(grep { length($_->read_all) >= 9000 } @held), 0, 'they are cut off');
    ok($upgraded->closed_by_server, 'so is the upgraded connection');
    is(steady(), 0, 'and not counted any more');
    is($node->get('/')->{status}, 200, 'new requests are answered');
    ok(wait_until(sub { steady() == 0 }), 'and counted off');
    ok(is_worker(elected()), 'and the cleanup goes on');
    $node->log_is_clean;
};


done_testing;
