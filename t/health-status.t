# What status says of health checks.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/health.pl";

our ($node, $INTERVAL);
my $backend = RegistryTest->backend(name => 'a');
my $probed = RegistryTest->probed(how => 'silent');
$node = checked({
    main  => ['timeout=' . ms(1)],
    slow  => [ 'interval=1h', 'timeout=' . ms(20) ],
    later => [ 'fails=3', 'passes=3', 'interval=' . ms(0.05) ],
    none  => undef,
    off   => { upstream => 'registry_health_check off;', check => [] },
});

subtest 'before the first check has ended' => sub {
    call('slow', add => $probed);
    ok(wait_until(sub { $probed->count == 1 }), 'it is under way');
    is_deeply(health('slow', $probed), {
        checks => 0, fails => 0, consecutive => 0, last_check => undef, last_error => undef, latency_ms => 0,
    }, 'nothing is known');
    is(state('slow', $probed), 'up', 'the server is up');
    my $text = $node->get('/slow/status')->{body};
    like($text, qr/"health":\{"checks":0,"fails":0,"consecutive":0,"last_check":null,"last_error":null,"latency_ms":0\}/, 'in this order');
};

subtest 'after it' => sub {
    $backend->set(delay => 0.2 * time_scale());
    my $start = time;
    call('main', add => $backend);
    my $health = after_checks('main', $backend, 1);
    my $end = time;
    is($health->{fails}, 0, 'it passed');
    is($health->{last_error}, undef, 'without an error');
    cmp_ok($health->{consecutive}, '>=', 1, 'so it is one in a row');
    ok($health->{last_check} > $start && $health->{last_check} < $end + 0.1, 'it ended now') or diag("$start $health->{last_check} $end");
    my $ms = 200 * time_scale();
    ok($health->{latency_ms} >= 0.9 * $ms && $health->{latency_ms} < 4 * $ms, "it took as long as the answer: $health->{latency_ms} ms");
    call('main', remove => $backend);
    $backend->clear;
};

subtest 'in a row' => sub {
    call('later', add => $backend);
    my $health = after_checks('later', $backend, 5);
    is($health->{consecutive}, $health->{checks}, 'all have passed');
    $backend->set(status => 503);
    ok(wait_until(sub { $health = health('later', $backend); $health->{consecutive} <= -4 }), 'then they fail');
    is($health->{fails}, -$health->{consecutive}, 'fails counts them') or diag(explain($health));
    is($health->{last_error}, 'status 503', 'the last one for this');
    cmp_ok($health->{checks}, '>', $health->{fails}, 'checks counts all');
    $backend->clear;
    my $fails = $health->{fails};
    ok(wait_until(sub { $health = health('later', $backend); $health->{consecutive} >= 2 }), 'they pass again');
    is($health->{last_error}, undef, 'without an error');
    cmp_ok($health->{fails}, '>=', $fails, 'fails does not go back');
    my $before = $health->{last_check};
    after_checks('later', $backend, $health->{checks} + 2);
    cmp_ok(health('later', $backend)->{last_check}, '>', $before, 'last_check goes on');

    call('later', toggle => $backend, action => 'disable');
    sleep 2 * $INTERVAL;
    my $checks = health('later', $backend)->{checks};
    my $seen = $backend->stats->{requests};
    sleep 4 * $INTERVAL;
    is(health('later', $backend)->{checks}, $checks, 'one that is switched off by hand is not checked');
    is($backend->stats->{requests}, $seen, 'as it sees itself');
    call('later', toggle => $backend, action => 'enable');
    after_checks('later', $backend, $checks + 1, 'until it is switched on');
    is(state('later', $backend), 'up', 'and it is up at once');

    call('later', remove => $backend);
    call('later', add => $backend);
    cmp_ok(health('later', $backend)->{checks}, '<', 4, 'removed and added it begins anew');
    call('later', remove => $backend);
};

subtest 'where there are no checks' => sub {
    for my $registry (qw(none off)) {
        call($registry, add => $backend);
        my $server = server($registry, $backend);
        ok(exists $server->{health} && !defined $server->{health}, "$registry: health is null");
    }
    my $seen = $backend->stats->{requests};
    sleep 4 * $INTERVAL;
    is($backend->stats->{requests}, $seen, 'and nobody asks');
};

$node->log_is_clean;
done_testing;
