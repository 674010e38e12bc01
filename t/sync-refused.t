# A Redis that answers, and does not do what it is told: busy with a script, out of memory, a wrong password,
# a replica.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
my $TIMEOUT = 0.5 * time_scale();
my $backend = RegistryTest->backend(name => 'web');

sub fresh {
    my ($redis, %opt) = @_;
    my @nodes = map { node(redis => $redis, settings => { redis_timeout => ms($TIMEOUT) }, %opt) } 1, 2;
    connected($_) or die "no sync\n" for @nodes;
    change($nodes[0], add => $backend, max_conns => 0, ns => $_) for qw(default other);
    becomes($nodes[1], $backend, {}, 'a server on both', ns => $_) for qw(default other);
    return @nodes;
}

# While Redis refuses: requests and changes go on. Returns what was added.
my $port = 0;
sub meanwhile {
    my ($what, @nodes) = @_;
    my @added;
    for my $node (@nodes) {
        my $since = time;
        is($node->get('/other/')->{status}, 200, "$what: requests are served");
        push @added, '127.0.0.9:' . ++$port;
        change($node, add => $added[-1]);
        change($node, weight => $added[-1], weight => 7);
        cmp_ok(time - $since, '<', $TIMEOUT, 'and nobody waits');
    }
    return map { "$_ 7 1000 true up" } @added;
}
sub reason {
    my ($node, $pattern, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $line = (grep { /can't be used/ } redis_lines($node))[-1];
    return like($line || 'no line', $pattern, $name);
}

for my $threshold (5000, 100) {
    my $what = $threshold == 5000 ? 'a slow script, and no answers' : 'a slow script, and answers that say so';
    subtest $what => sub {
        my $redis = RegistryTest->redis(conf => "busy-reply-threshold $threshold");
        my @busy = $redis->busy(3 * time_scale());
        my @nodes = fresh($redis);
        my $client = $redis->client(timeout => 30 * time_scale());
        $client->send(@busy);
        ok(disconnected($_), 'it can\'t be used') for @nodes;
        my @added = meanwhile('while the script runs', @nodes);
        $client->receive;
        agree(\@nodes, [ $backend->address, @added ], 'then both have all', timeout => 10 * time_scale());
        ok(pushed($_), 'and nothing waits') for @nodes;
        redis_agrees($redis, \@nodes, 'nor lacks in Redis');
        log_says($_, 'used away again', 'the log') for @nodes;
        $_->log_is_clean for @nodes;
    };
}

subtest 'a short one is nothing' => sub {
    my $redis = RegistryTest->redis;
    my @busy = $redis->busy(0.1 * time_scale());
    my @nodes = fresh($redis);
    $redis->cli(@busy) for 1 .. 5;
    my @added = meanwhile('meanwhile', @nodes);
    agree(\@nodes, [ $backend->address, @added ], 'both are in step');
    log_says($_, 'used', 'and the log has no word of it') for @nodes;
    $_->log_is_clean for @nodes;
};

subtest 'a wrong password' => sub {
    my $redis = RegistryTest->redis(password => 'first-secret');
    my @nodes = fresh($redis);
    my $url = $redis->url;
    my $wrong = node(redis => $url =~ s/first-secret/wrong-secret/r, settings => { redis_timeout => ms($TIMEOUT) });
    ok($wrong->wait_log(qr/can't be used/), 'one that has another');
    reason($wrong, qr/(?:password|WRONGPASS|NOAUTH|AUTH)/i, 'says why');
    change($wrong, add => '127.0.0.9:100');
    sleep 3 * $INTERVAL;
    log_says($wrong, 'away', 'once');
    is(known($nodes[0]), $backend->address, 'nobody hears of its servers');
    ok(!sync($wrong)->{connected}, 'status says so');

    # Right after the password is changed, those that are connected may stay; a new connection may not.
    $redis->cli(CONFIG => SET => requirepass => 'wrong-secret');
    $redis->{password} = 'wrong-secret';
    delete $redis->{client};
    ok(connected($wrong, 10 * time_scale()), 'when that is the password, it is connected');
    agree([ @nodes, $wrong ], [ $backend->address, '127.0.0.9:100' ], 'and knows and tells all');
    log_says($wrong, qr/^away (?:used|again)$/, 'the log');
    $redis->cli(CLIENT => KILL => TYPE => 'normal');
    ok(disconnected($_), 'cut off, the others have the wrong one') for @nodes;
    my @added = meanwhile('with the wrong password', @nodes);
    $redis->cli(CONFIG => SET => requirepass => 'first-secret');
    $redis->{password} = 'first-secret';
    delete $redis->{client};
    agree(\@nodes, [ $backend->address, '127.0.0.9:100', @added ], 'until it is changed back', timeout => 10 * time_scale());
    log_says($_, 'used away again', 'the log') for @nodes;
    for my $node (@nodes, $wrong) {
        unlike($node->error_log, qr/(?:first|wrong)-secret/, 'it has no password');
        unlike($node->get('/upstream/status?ns=default')->{body}, qr/(?:first|wrong)-secret/, 'nor has status');
        unlike(join('', map { slurp("/proc/$_/cmdline") } $node->pid, $node->workers), qr/(?:first|wrong)-secret/, 'nor the process its title');
        $node->log_is_clean;
    }
};

subtest 'a user that may not' => sub {
    my $redis = RegistryTest->redis(user => [ 'web', 'word', '~upstream:*', '&upstream:*', '+@all' ]);
    my $url = 'redis://web:word@' . $redis->address . '/0';
    my @nodes = fresh($redis, settings => { redis => $url, redis_timeout => ms($TIMEOUT) });
    $redis->cli(ACL => SETUSER => 'web', '-@scripting');
    ok(disconnected($_, 10 * time_scale()), 'a right is taken away: it can\'t be used') for @nodes;
    my @added = meanwhile('without it', @nodes);
    reason($_, qr/NOPERM|permission/i, 'the log says why') for @nodes;
    $redis->cli(ACL => SETUSER => 'web', '+@all');
    agree(\@nodes, [ $backend->address, @added ], 'given back, all is in step', timeout => 10 * time_scale());
    log_says($_, 'used away again', 'the log') for @nodes;
    $_->log_is_clean for @nodes;
};

subtest 'a user that may not listen' => sub {
    my $redis = RegistryTest->redis(user => [ 'web', 'word', '~upstream:*', '&upstream:*', '+@all' ]);
    my $url = 'redis://web:word@' . $redis->address . '/0';
    my @nodes = fresh($redis, settings => { redis => $url, redis_timeout => ms($TIMEOUT) });
    log_says($_, 'used', 'while it may the log has no word of it') for @nodes;
    $redis->cli(ACL => SETUSER => 'web', '-subscribe');
    $redis->cut_subscribers;
    ok($_->wait_log(qr/can't be listened to: its user lacks a permission \(ACL\): .*subscribe/i), 'the log says so, and why') for @nodes;
    for my $i (0, 1) {
        my $addr = "127.0.0.9:20$i";
        change($nodes[$i], add => $addr);
        becomes($nodes[ !$i ], $addr, {}, 'a change comes all the same', timeout => $INTERVAL + $SLACK);
    }
    sleep 3 * $INTERVAL;
    log_says($_, 'used deaf', 'once') for @nodes;
    $redis->cli(ACL => SETUSER => 'web', '+subscribe');
    ok($_->wait_log(qr/is listened to again/, 10 * time_scale()), 'given back, it is listened to again') for @nodes;
    log_says($_, 'used deaf hears', 'and the log says that') for @nodes;

    # From the beginning; and Redis away is another thing.
    $redis->cli(ACL => SETUSER => 'web', '-subscribe');
    my $late = node(redis => $url, settings => { redis_timeout => ms($TIMEOUT) });
    ok($late->wait_log(qr/can't be listened to/), 'one that never could says so too');
    log_says($late, 'used deaf', 'after it is used');
    $_->log_is_clean for @nodes, $late;
};

subtest 'Redis away is nothing to say of listening' => sub {
    my $redis = RegistryTest->redis;
    my @nodes = fresh($redis);
    for (1, 2) {
        $redis->stop;
        ok(disconnected($_, 10 * time_scale()), 'away') for @nodes;
        sleep 2 * $INTERVAL;
        $redis->start;
        ok(connected($_, 10 * time_scale()), 'back') for @nodes;
        sleep 3 * $INTERVAL;
    }
    $redis->cut_subscribers;
    sleep 3 * $INTERVAL;
    unlike(redis_log($_), qr/deaf|hears|listen/, 'no line') for @nodes;
    $_->log_is_clean for @nodes;
};

subtest 'a replica that takes no writes' => sub {
    my $redis = RegistryTest->redis;
    my $master = RegistryTest->redis;
    my @nodes = fresh($redis);
    # It becomes a replica while it is in use; and takes over the data of its master, which is empty.
    $redis->cli(REPLICAOF => '127.0.0.1', $master->port);
    ok(disconnected($_, 10 * time_scale()), 'it can\'t be used') for @nodes;
    my @added = meanwhile('with a replica', @nodes);
    reason($_, qr/READONLY|read.only|replica/i, 'the log says why') for @nodes;
    sleep 3 * $INTERVAL;
    agree([$nodes[0]], [ $backend->address, $added[0] ], 'nobody forgets a server because the replica has none');
    $redis->cli(REPLICAOF => 'NO', 'ONE');
    agree(\@nodes, [ $backend->address, @added ], 'a master again, it is filled', timeout => 10 * time_scale());
    redis_agrees($redis, \@nodes, 'and agrees');
    log_says($nodes[$_], qr/^used away (?:again(?: lost)?|lost again)$/, 'the log') for 0, 1;
    $_->log_is_clean for @nodes;
};

subtest 'no memory' => sub {
    my $redis = RegistryTest->redis;
    my @nodes = fresh($redis);
    $redis->cli(CONFIG => SET => maxmemory => 1);
    my @added = meanwhile('without memory', @nodes);
    ok(disconnected($_, 10 * time_scale()), 'it can\'t be used') for @nodes;
    push @added, meanwhile('for a while', @nodes);
    sleep 3 * $INTERVAL;
    reason($_, qr/OOM|memory/i, 'the log says why') for @nodes;
    cmp_ok(sync($nodes[0])->{pending}, '>=', 2, 'what was changed waits');
    $redis->cli(CONFIG => SET => maxmemory => 0);
    agree(\@nodes, [ $backend->address, @added ], 'with memory, all is pushed', timeout => 10 * time_scale());
    ok(pushed($_), 'and nothing waits') for @nodes;
    redis_agrees($redis, \@nodes, 'Redis has it');
    log_says($_, 'used away again', 'the log') for @nodes;
    $_->log_is_clean for @nodes;
};

subtest 'scripts that Redis has forgotten' => sub {
    my $redis = RegistryTest->redis;
    my @nodes = fresh($redis);
    for (1 .. 5) {
        $redis->cli(SCRIPT => 'FLUSH');
        my $weight = 10 + $_;
        change($nodes[ $_ % 2 ], weight => $backend, weight => $weight);
        becomes($nodes[ !($_ % 2) ], $backend, { weight => $weight }, 'a change arrives all the same');
    }
    log_says($_, 'used', 'and the log has no word of it') for @nodes;
    $_->log_is_clean for @nodes;
};

done_testing;
