# The state file over reloads, and the workers that write it: one elected at a time, another
# when it is killed, and none that its thread keeps from shutting down.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $SECOND = 1 * time_scale();
my $backend = RegistryTest->backend(name => 'a');

sub registries {
    my ($settings, $size) = @_;
    return 'registry main ' . ($size || '512k') . " { heartbeat_ttl 1h; $settings }
        upstream backend { registry main; server " . $backend->address . '; }';
}
sub node {
    my ($settings, %opt) = @_;
    return RegistryTest->nginx(workers => 3, %opt, http => registries($settings),
        server => 'location /upstream/ { registry_api main; }
            location / { proxy_pass http://backend; add_header X-Worker $pid; }');
}
my $port = 0;
# Registers another server; it is to be in a file within a second.
sub saves {
    my ($node, $name, $what) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    $port++;
    api($node, 'add', { ns => 'backend', host => '127.0.0.9', port => $port });
    return ok(wait_until(sub { slurp($node->dir . "/$name") =~ /127\.0\.0\.9:$port"/ }, $SECOND), $what);
}
sub count { my ($node, $name) = @_; return slurp($node->dir . "/$name") =~ /"count":(\d+),/ ? $1 : -1 }
sub picture { my ($node, $name) = @_; my @s = stat $node->dir . "/$name"; return "@s[1, 7, 9]" }
# The process that holds the file's lock file open, which is the one that writes.
sub writers {
    my ($node) = @_;
    return grep {
        my $pid = $_;
        grep { (readlink($_) || '') =~ /\.json\.lock$/ } glob "/proc/$pid/fd/*";
    } $node->workers, $node->old_workers;
}
sub threads { my ($pid) = @_; return scalar(() = glob "/proc/$pid/task/*") }

subtest 'another path is written soon, without a change; the old file stays' => sub {
    my $node = node('state_file one.json;');
    saves($node, 'one.json', 'the first file is written') for 1 .. 2;
    $node->set_conf(http => registries('state_file two.json;'));
    $node->reload or die;
    ok(wait_until(sub { count($node, 'two.json') == 3 }, $SECOND), 'the second has all servers');
    my $before = picture($node, 'one.json');
    saves($node, 'two.json', 'changes go there');
    is(picture($node, 'one.json'), $before, 'and not to the first');

    $node->set_conf(http => registries(''));
    $node->reload or die;
    $before = picture($node, 'two.json');
    $port++;
    api($node, 'add', { ns => 'backend', host => '127.0.0.9', port => $port });
    sleep 0.8 * time_scale();
    is(picture($node, 'two.json'), $before, 'without the directive nothing is written');
    is(scalar(writers($node)), 0, 'by nobody');

    $node->set_conf(http => registries('state_file two.json;'));
    $node->reload or die;
    ok(wait_until(sub { count($node, 'two.json') == 5 }, $SECOND), 'with it again, what changed in between is');
    $node->log_is_clean;
};

subtest 'a good file at the new path is read in, not thrown away' => sub {
    my $node = node('state_file one.json;');
    saves($node, 'one.json', 'a server');
    $node->quit;
    rename $node->dir . '/one.json', $node->dir . '/two.json';
    $node->start;
    saves($node, 'one.json', 'another');
    is(status($node, 'backend')->{total}, 2, 'the first is not known');
    $node->set_conf(http => registries('state_file two.json;'));
    $node->reload or die;
    ok(wait_until(sub { status($node, 'backend')->{total} == 3 }, $SECOND), 'until its file is named');
    ok(wait_until(sub { count($node, 'two.json') == 3 }, $SECOND), 'which then has all');
    $node->log_is_clean;
};

subtest 'a zone of another size goes on in the same file' => sub {
    my $node = node('state_file one.json;');
    saves($node, 'one.json', 'a server');
    my $held = $node->client;    # an old worker stays
    $held->send("GET /?delay=2 HTTP/1.1\r\nHost: x\r\n\r\n");
    wait_until(sub { connections($node, 'backend') == 1 });
    for my $size ('1m', '640k') {
        my $gone = $port;
        $port++;
        api($node, 'add', { ns => 'backend', host => '127.0.0.9', port => $port });
        api($node, 'remove', { ns => 'backend', host => '127.0.0.9', port => $gone });
        $node->set_conf(http => registries('state_file one.json;', $size));
        ok($node->reload(wait => 'new'), "a zone of $size, right after two changes");
        ok(wait_until(sub { my $text = slurp($node->dir . '/one.json'); $text =~ /9:$port"/ && $text !~ /9:$gone"/ }, $SECOND), 'which are in the file');
        is(join(',', sort map { /:(\d+)$/ ? $1 : () } grep { /^127\.0\.0\.9:/ } keys %{ servers($node, 'backend') }), $port, 'and in the zone: none came back');
    }
    saves($node, 'one.json', 'more changes');
    ok(wait_until(sub { writers($node) == 1 }, $SECOND), 'one process writes');
    $held->response;
    $node->log_is_clean;
};

subtest 'when the writer is killed another goes on within the second' => sub {
    my $node = node('cleanup_interval 1h; state_file one.json;');
    for my $round (1 .. 3) {
        saves($node, 'one.json', 'a server');
        my ($writer) = writers($node);
        ok($writer, "worker writes");
        $node->kill_worker($writer);
        saves($node, 'one.json', 'killed: the next one is saved in time all the same');
        my ($next) = writers($node);
        ok($next && $next != $writer, 'by another');
    }
    # A change whose writer is killed with it, before it can be written.
    my ($writer) = writers($node);
    $port++;
    api($node, 'add', { ns => 'backend', host => '127.0.0.9', port => $port });
    $node->kill_worker($writer, 'KILL', respawn => 0);
    ok(wait_until(sub { slurp($node->dir . '/one.json') =~ /127\.0\.0\.9:$port"/ }, $SECOND), 'what it had not written is written');
    $node->log_is_clean(allow => [ [ qr/exited on signal 9/, 4 ] ]);
};

subtest 'no worker lingers' => sub {
    my $node = node('state_file one.json;');
    saves($node, 'one.json', 'a server');
    my ($writer) = writers($node);
    is(threads($writer), 2, 'the writer has a thread');
    is(scalar(grep { threads($_) > 1 } $node->workers), 1, 'the others have none');
    for (1 .. 3) {
        api($node, 'add', { ns => 'backend', host => '127.0.0.9', port => ++$port });
        my $began = time;
        ok($node->reload, 'a reload while something is being written');
        my $took = time - $began;
        ok($took < 1.5 * $SECOND, "old workers are gone at once ($took s)");
    }
    # With a request that keeps it: then it goes when that ends, and writes no more.
    ($writer) = writers($node);
    my @held = map {
        my $client = $node->client;
        $client->send("GET /?drip=1.5&size=1000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        $client;
    } 1 .. 12;
    wait_until(sub { connections($node, 'backend') == 12 });
    ok($node->reload(wait => 'new'), 'a reload under requests');
    ok(scalar($node->old_workers), 'which keep old workers');
    saves($node, 'one.json', 'new ones save');
    ok(!grep({ $_ == $writer } writers($node)), 'and the old one does not any more');
    is(threads($writer), 1, 'nor has it a thread') if alive($writer);
    $_->read_all for @held;
    ok(wait_until(sub { !$node->old_workers }), 'the requests done, they go');
    my $began = time;
    api($node, 'add', { ns => 'backend', host => '127.0.0.9', port => ++$port });
    ok($node->quit, 'all quit');
    ok(time - $began < 1.5 * $SECOND, 'at once');
    like(slurp($node->dir . '/one.json'), qr/127\.0\.0\.9:$port"/, 'with the last change saved');
    $node->log_is_clean;
};

subtest 'changes that come while all workers are on their way out' => sub {
    my $node = node('state_file one.json;');
    my $body = 'ns=backend&host=127.0.0.9&port=7777';
    my @slow = map {
        my $client = $node->client;
        $client->send("POST /upstream/add HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: " . length($body) . "\r\n\r\n" . substr $body, 0, 10);
        $client;
    } 1 .. 6;
    my @stay = map { my $c = $node->client; $c->send("GET /?delay=3 HTTP/1.1\r\nHost: x\r\n\r\n"); $c } 1 .. 6;
    wait_until(sub { connections($node, 'backend') == 6 });
    $node->signal('QUIT');
    ok(wait_until(sub { $node->old_workers && !$node->workers }), 'all are shutting down, with requests');
    $_->send(substr $body, 10) for @slow;
    is($slow[0]->response->{status}, 200, 'one of which adds a server');
    ok(wait_until(sub { slurp($node->dir . '/one.json') =~ /127\.0\.0\.9:7777"/ }, $SECOND), 'which is saved within a second');
    $_->response for @stay;
    ok(wait_until(sub { !$node->running }), 'then they go');
    $node->log_is_clean;
};

done_testing;
