# Rise and fall: how many checks make a server unhealthy and healthy again, what the log says, and how that goes
# together with everything else that takes a server out.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/health.pl";

our ($node, $INTERVAL);
my $TTL = 1 * time_scale();
my $LONG = 3600 * time_scale();
my ($a, $b, @more) = map { RegistryTest->backend(name => $_) } qw(a b c d e);
$node = checked({
    three  => [ 'fails=3', 'passes=3' ],
    # Nothing but the checks may take servers out.
    main   => { check => [], upstream => 'registry_balance round_robin;' },
    beats  => { check => [ 'fails=1', 'passes=1' ], block => 'heartbeat_ttl ' . ms(1) . '; cleanup_interval 50ms;' },
    panics => { check => [ 'fails=1', 'passes=1' ], block => 'heartbeat_ttl 0; cleanup_interval 50ms; panic_threshold 50%;' },
    slow   => { check => [ 'fails=1', 'passes=1' ], block => 'heartbeat_ttl 0; slow_start 1h;', upstream => 'registry_balance round_robin;' },
    mixed  => [ 'fails=1', 'passes=1' ],
});

subtest 'so many failures in a row, and no fewer' => sub {
    call('three', add => $a);
    after_checks('three', $a, 2);
    for my $round (1 .. 3) {
        $a->set(status => 503, times => 2);
        ok(wait_until(sub { ($a->stats->{status}{503} || 0) == 2 * $round }), 'two checks fail');
        my $passes = $a->stats->{status}{200};
        ok(wait_until(sub { $a->stats->{status}{200} > $passes }), 'the next one passes');
    }
    is(join('; ', said('three', $a)), '', 'nothing is said');
    is(state('three', $a), 'up', 'it is up');
    is(health('three', $a)->{fails}, 6, 'they were counted');

    $a->set(status => 503, times => 3);
    ok(wait_until(sub { @{ [ said('three', $a) ] } }), 'three fail');
    is(state('three', $a), 'unhealthy', 'it is unhealthy');
    is(answers('three'), 502, 'and gets no request');
    my $start = $a->stats->{status}{200};
    becomes('three', $a, 'up', 'it comes back');
    # The last of these may have been answered right now.
    my $passed = $a->stats->{status}{200} - $start;
    is(health('three', $a)->{fails}, 9, 'after three that failed');
    cmp_ok(health('three', $a)->{consecutive}, '>=', 3, 'and three that passed');
    cmp_ok($passed, '<=', 5, "($passed)");
    is(answers('three'), 'a', 'it gets requests');
    is(join('; ', said('three', $a)), 'unhealthy: status 503, 3; healthy', 'the log has a line for each');
    call('three', remove => $a);
};

subtest 'while it stays unhealthy' => sub {
    my $from = $node->log_size;
    $a->set(status => 500);
    call('main', add => $_) for $a, $b;
    becomes('main', $a, 'unhealthy', 'one of two fails');
    is(answers('main', 10), 'b', 'requests go to the other');
    my $count = health('main', $a)->{checks};
    after_checks('main', $a, $count + 5);
    is(join('; ', said('main', $a, $from)), 'unhealthy: status 500, 2', 'it is said once');
    is(answers('main', 10), 'b', 'requests go to the other');
    # One pass is not enough.
    $a->set(status => 200, times => 1);
    my $passes = $a->stats->{status}{200} || 0;
    ok(wait_until(sub { ($a->stats->{status}{200} || 0) > $passes }), 'one check passes');
    $a->set(status => 404);
    after_checks('main', $a, health('main', $a)->{checks} + 2);
    is(state('main', $a), 'unhealthy', 'it stays out');
    $a->clear;
    becomes('main', $a, 'up', 'until two pass');
    is(answers('main', 10), 'a b', 'and both get requests');
    is(join('; ', said('main', $a, $from)), 'unhealthy: status 500, 2; healthy', 'two lines in all');
    is(join('; ', said('main', $b, $from)), '', 'none of the other');
};

subtest 'nobody is left' => sub {
    $_->set(status => 503) for $a, $b;
    becomes('main', $_, 'unhealthy', $_->name . ' fails') for $a, $b;
    my $from = $node->log_size;
    is($node->get('/to/main')->{status}, 502, 'a request fails');
    my @lines = $node->grep_log(qr/\[error\] .*2 unhealthy/, $from);
    is(scalar @lines, 1, 'and a line says why') or diag($node->error_log($from));
    like($lines[0] || '', qr/registry "main": .*namespace "main".*: 2 unhealthy/, 'with the namespace');
    $b->clear;
    becomes('main', $b, 'up', 'one recovers');
    is(answers('main'), 'b', 'and is enough');
    $a->clear;
    becomes('main', $a, 'up', 'the other too');
};

subtest 'switched off, draining, of weight 0' => sub {
    call('main', toggle => $a, action => 'disable');
    is(state('main', $a), 'down', 'switched off by hand');
    is(answers('main', 10), 'b', 'it gets nothing');
    $a->set(status => 503);
    call('main', toggle => $a, action => 'enable');
    becomes('main', $a, 'unhealthy', 'switched on it is checked, and fails');
    call('main', toggle => $a, action => 'disable');
    is(state('main', $a), 'down', 'switched off');
    call('main', toggle => $a, action => 'enable');
    is(state('main', $a), 'unhealthy', 'and on: no hand makes it healthy');
    $a->clear;
    becomes('main', $a, 'up', 'checks do');

    call('main', drain => $a);
    is(state('main', $a), 'draining', 'draining');
    my $checks = health('main', $a)->{checks};
    after_checks('main', $a, $checks + 3, 'it is still checked');
    is(state('main', $a), 'draining', 'which does not end it');
    is(answers('main', 10), 'b', 'it gets nothing');
    $a->set(status => 503);
    ok(wait_until(sub { health('main', $a)->{consecutive} <= -2 }), 'it fails');
    call('main', toggle => $a, action => 'enable');
    is(state('main', $a), 'unhealthy', 'the end of the drain does not make it healthy');
    $a->clear;
    becomes('main', $a, 'up', 'checks do');
    call('main', weight => $a, weight => 0);
    after_checks('main', $a, health('main', $a)->{checks} + 2, 'one of weight 0 is checked');
    is(answers('main', 10), 'b', 'and gets nothing');
    call('main', weight => $a, weight => 1);
    is(answers('main', 10), 'a b', 'with its weight it does');
    call('main', remove => $_) for $a, $b;
};

subtest 'heartbeats and checks must agree' => sub {
    my $beat = sub { call('beats', refresh => $_) for @_ };
    call('beats', add => $a);
    $a->set(status => 503);
    ok(wait_until(sub { $beat->($a); state('beats', $a) eq 'unhealthy' }), 'heartbeats do not make an unhealthy server healthy');
    is(answers('beats'), 502, 'it gets nothing');
    $a->clear;
    ok(wait_until(sub { $beat->($a); state('beats', $a) eq 'up' }), 'passes do');
    ok(wait_until(sub { state('beats', $a) eq 'expired' }, 3 * $TTL), 'silent it expires');
    my $checks = health('beats', $a)->{checks};
    ok(wait_until(sub { health('beats', $a)->{checks} >= $checks + 3 }), 'checks pass meanwhile');
    is(state('beats', $a), 'expired', 'which is no heartbeat');
    is(answers('beats'), 502, 'it gets nothing');
    $beat->($a);
    is(state('beats', $a), 'up', 'with a heartbeat it is back at once');
    is(answers('beats'), 'a', 'and gets requests');
    $a->set(status => 503);
    ok(wait_until(sub { health('beats', $a)->{consecutive} < 0 && state('beats', $a) eq 'expired' }, 5 * $TTL), 'it fails and falls silent');
    $beat->($a);
    is(state('beats', $a), 'unhealthy', 'a heartbeat is not enough');
    $a->clear;
    ok(wait_until(sub { $beat->($a); state('beats', $a) eq 'up' }), 'both are');
    call('beats', remove => $a);
};

subtest 'an add of a known server' => sub {
    $a->set(status => 503);
    call('mixed', add => $a);
    becomes('mixed', $a, 'unhealthy', 'one that failed');
    call('mixed', add => $a, weight => 3);
    is(state('mixed', $a), 'unhealthy', 'does not become healthy by registering again');
    $a->clear;
    becomes('mixed', $a, 'up', 'checks do that');
    call('mixed', remove => $a);
};

subtest 'a panic counts those that are unhealthy' => sub {
    my @all = ($a, $b, @more);
    call('panics', add => $_) for @all;
    $_->set(status => 503) for @all[0 .. 1];
    becomes('panics', $_, 'unhealthy', $_->name . ' fails') for @all[0 .. 1];
    is(answers('panics', 20), 'c d e', 'two of five: requests go to the others');
    $_->set(status => 503) for @all[2 .. 3];
    becomes('panics', $_, 'unhealthy', $_->name . ' fails') for @all[2 .. 3];
    my $line = $node->wait_log(qr/registry "panics": .*more than panic_threshold, requests go to all/);
    like($line || '', qr/\[warn\].*[34] of 5/, 'most of them: that is said') or diag($line || 'no line');
    my %by = map { ($_->{headers}{'x-backend'} || $_->{status}) => 1 } map { $node->get('/to/panics') } 1 .. 40;
    is(join(' ', sort keys %by), 'a b c d e', 'and requests go to all');
    is($node->get('/panics/health?ready')->{status}, 200, 'it is ready');
    $_->clear for @all;
    becomes('panics', $_, 'up', $_->name . ' recovers') for @all[0 .. 3];
    ok($node->wait_log(qr/registry "panics": .*no more than panic_threshold/), 'the end is said');
    call('panics', remove => $_) for @all;
};

subtest 'who recovers begins slowly' => sub {
    call('slow', add => $_, slow_start => 0) for $a, $b;
    after_checks('slow', $b, 1);
    my $share = sub { return scalar grep { ($node->get('/to/slow')->{headers}{'x-backend'} || '') eq 'b' } 1 .. 40 };
    cmp_ok($share->(), '>=', 19, 'a half');
    call('slow', add => $b, slow_start => '1h');
    cmp_ok($share->(), '>=', 19, 'still, as it is not new');
    $b->set(status => 503);
    becomes('slow', $b, 'unhealthy', 'it fails');
    $b->clear;
    becomes('slow', $b, 'up', 'and recovers');
    cmp_ok($share->(), '<=', 3, 'with next to nothing');
    call('slow', remove => $_) for $a, $b;
};

subtest 'what requests find, and what checks find' => sub {
    # Requests fail on it while its checks pass: stock rules hold it back for a while, and the checks don't end that.
    my $probed = RegistryTest->probed;
    call('mixed', add => $probed, fail_timeout => '1h', max_fails => 1);
    call('mixed', add => $a);
    after_checks('mixed', $probed, 2);
    $probed->behave('status 503');
    becomes('mixed', $probed, 'unhealthy', 'checks fail');
    $probed->behave('ok');
    becomes('mixed', $probed, 'up', 'and pass');
    is(server('mixed', $probed)->{fails}, 0, 'checks are not counted as failed requests');
    is(server('mixed', $probed)->{requests}, 0, 'nor as requests');
    is(server('mixed', $probed)->{connections}, 0, 'nor as connections');
    call('mixed', remove => $_) for $a, $probed;
};

$node->log_is_clean;
done_testing;
