# Redis Cluster: all keys of a registry are in one slot, wherever that is.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
my $PREFIX = '{upstream}';
my @masters = RegistryTest->cluster(password => 'for-cluster');
my ($owner, $slot) = RegistryTest::Redis->owner("$PREFIX:servers:meta", @masters);
my @others = grep { $_ != $owner } @masters;
my $hosts = join ',', map { $_->address } @masters;
my $backend = RegistryTest->backend(name => 'web');
# One that knows all of them, and one that has to ask the way.
my ($one, $two) = my @nodes = (
    node(redis => "redis+cluster://:for-cluster\@$hosts"),
    node(redis => 'redis+cluster://:for-cluster@' . $others[0]->address),
);

subtest 'two nodes and a cluster' => sub {
    ok(connected($_), 'connected') or diag($_->error_log) for @nodes;
    change($one, add => $backend, max_conns => 0, ns => $_) for qw(default other);
    becomes($two, $backend, {}, 'a server to serve requests', ns => 'other');
    change($two, add => '127.0.0.9:1', weight => 2);
    change($two, add => '127.0.0.9:2', ns => 'fresh');
    agree(\@nodes, [ $backend->address, '127.0.0.9:1 2 1000 true up' ], 'servers on both');
    becomes($one, '127.0.0.9:2', {}, 'in every namespace', ns => 'fresh');
    redis_agrees($owner, \@nodes, 'and in Redis', prefix => $PREFIX);
    redis_agrees($owner, \@nodes, 'there as well', prefix => $PREFIX, ns => 'fresh');
    is(scalar(map { @{ $_->cli(KEYS => '*') } } @others), 0, 'all keys are where the prefix belongs');
    is(scalar(grep { !/^\Q$PREFIX\E:/ } @{ $owner->cli(KEYS => '*') }), 0, 'and begin with it');
    is(answers($two, 1, '/other/'), 'web', 'requests are served');
    my $since = time;
    disable($one, '127.0.0.9:1');
    becomes($two, '127.0.0.9:1', { state => 'down' }, 'a change');
    cmp_ok(time - $since, '<', $INTERVAL + $SLACK, 'is soon on the other');
    change($two, remove => '127.0.0.9:1');
    becomes($one, '127.0.0.9:1', undef, 'a removal');
    my @held = hold($one, 2);
    ok(wait_until(sub { server($two, $backend)->{connections} == 2 }), 'counts are those of both');
    release(@held);
    ok(wait_until(sub { server($two, $backend)->{connections} == 0 }), 'and end');
    $owner->register('default', '127.0.0.9:3', prefix => $PREFIX);
    becomes($_, '127.0.0.9:3', {}, 'what another program writes there counts') for @nodes;
    log_says($_, 'used', 'the log') for @nodes;
};

subtest 'a prefix of one\'s own gets the braces' => sub {
    my $node = node(redis => "redis+cluster://:for-cluster\@$hosts", settings => { redis_prefix => 'web' });
    connected($node);
    change($node, add => '127.0.0.9:1');
    my ($place) = RegistryTest::Redis->owner('{web}:servers:meta', @masters);
    ok(wait_until(sub { keys %{ $place->registry('default', prefix => '{web}') } == 1 }), 'its keys are where they belong');
    is(known($one), $backend->address . ' 127.0.0.9:3', 'and it is another registry');
    $node->log_is_clean;
};

subtest 'the slot moves' => sub {
    my $new = $others[0];
    RegistryTest::Redis->move_slot($slot, $owner, $new, @masters);
    is((RegistryTest::Redis->owner("$PREFIX:servers:meta", @masters))[0], $new, 'to another master');
    change($one, weight => '127.0.0.9:3', weight => 7);
    change($two, add => '127.0.0.9:4');
    agree(\@nodes, [ $backend->address, '127.0.0.9:3 7 1000 true up', '127.0.0.9:4' ], 'the nodes follow', timeout => 10 * time_scale());
    redis_agrees($new, \@nodes, 'and it has all', prefix => $PREFIX);
    @others = grep { $_ != $new } @masters;
    $owner = $new;
};

subtest 'a master that has none of it dies' => sub {
    my @from = map { $_->log_size } @nodes;
    $others[-1]->stop('KILL');
    change($one, weight => '127.0.0.9:3', weight => 8);
    becomes($two, '127.0.0.9:3', { weight => 8 }, 'changes go on', timeout => 10 * time_scale());
    $others[-1]->start;
    change($two, weight => '127.0.0.9:3', weight => 9);
    becomes($one, '127.0.0.9:3', { weight => 9 }, 'and when it is back', timeout => 10 * time_scale());
    redis_agrees($owner, \@nodes, 'Redis agrees', prefix => $PREFIX, timeout => 10 * time_scale());
};

subtest 'the master that has it dies, and comes back empty' => sub {
    $owner->stop('KILL');
    ok(disconnected($_, 10 * time_scale()), 'it is away') for @nodes;
    change($one, remove => '127.0.0.9:4');
    change($two, add => '127.0.0.9:5');
    is(answers($_, 1, '/other/'), 'web', 'requests are served') for @nodes;
    $owner->start;
    agree(\@nodes, [ $backend->address, '127.0.0.9:3 9 1000 true up', '127.0.0.9:5' ], 'it is filled', timeout => 15 * time_scale());
    redis_agrees($owner, \@nodes, 'with all', prefix => $PREFIX, timeout => 10 * time_scale());
};

for my $node (@nodes) {
    unlike($node->error_log, qr/for-cluster/, 'no password in the log');
    my @words = grep { !/^(?:used|away|again|lost)$/ } split ' ', redis_log($node);
    is("@words", '', 'and no other line') or diag(join "\n", redis_lines($node));
    $node->log_is_clean;
}
done_testing;
