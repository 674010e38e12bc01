# initial: what is thought of a server that has not been checked yet.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/health.pl";

our ($node, $INTERVAL);
my ($a, $b) = map { RegistryTest->backend(name => $_) } qw(a b);
my $line = RegistryTest->probed(count => 3);
my @lines = map { "server " . $line->address($_) . ';' } 0 .. 2;
$node = checked({
    up     => { check => [ 'initial=up', 'fails=3' ] },
    down   => { check => [ 'initial=down', 'passes=3' ] },
    probe  => { check => [ 'initial=probe', 'fails=3', 'passes=3' ] },
    once   => [ 'initial=probe', 'interval=1h' ],
    # Nothing of these happens while the test looks.
    up_line    => { check => [ 'initial=up', 'interval=1h', 'timeout=1h' ], upstream => $lines[0] },
    down_line  => { check => [ 'initial=down', 'passes=2' ], upstream => $lines[1] },
    probe_line => { check => [ 'initial=probe', 'passes=5', 'interval=1h' ], upstream => $lines[2] },
    saved  => { check => [ 'initial=down', 'passes=4' ], block => 'heartbeat_ttl 0; state_file saved.json;' },
    kept   => { check => [ 'initial=up', 'fails=4' ], block => 'heartbeat_ttl 0; state_file kept.json;' },
}, start => 0);
$line->behave('after 0.5');
$node->start;

subtest 'server lines' => sub {
    is(state('up_line', $line->address(0)), 'up', 'up: in rotation at once');
    my $r = $node->get('/to/down_line');
    is($r->{status}, 502, 'down: not before checks have passed') if state('down_line', $line->address(1)) eq 'unhealthy';
    ok($node->grep_log(qr/\[error\] .*1 unhealthy/), 'the log says why') if $r->{status} == 502;
    $line->behave('ok');
    becomes('down_line', $line->address(1), 'up', 'then it is');
    cmp_ok(($line->counts)[1], '>=', 2, 'after two');
    becomes('probe_line', $line->address(2), 'up', 'probe: after one');
    is(health('probe_line', $line->address(2))->{checks}, 1, 'and no more than that');
};

subtest 'up' => sub {
    $a->set(status => 503);
    call('up', add => $a);
    is($node->get('/to/up')->{status}, 503, 'requests go to it');
    becomes('up', $a, 'unhealthy', 'until checks fail');
    cmp_ok(health('up', $a)->{fails}, '>=', 3, 'three');
    is(join('; ', said('up', $a)), 'unhealthy: status 503, 3', 'as the log says');
    $a->clear;
    call('up', remove => $a);
};

subtest 'down' => sub {
    $a->set(delay => 0.1 * time_scale());
    call('down', add => $a);
    is(state('down', $a), 'unhealthy', 'it is out');
    is(answers('down', 1), 502, 'no request goes to it');
    is($node->get('/down/health?ready')->{status}, 503, 'and nobody is ready');
    becomes('down', $a, 'up', 'until checks pass');
    cmp_ok(health('down', $a)->{checks}, '>=', 3, 'three');
    is(answers('down'), 'a', 'then requests do');
    is(join('; ', said('down', $a)), 'healthy', 'as the log says');
    $a->clear;
    call('down', remove => $a);

    # One that never passes.
    my $from = $node->log_size;
    $a->set(status => 500);
    call('down', add => $a);
    my $health = after_checks('down', $a, 4);
    is(state('down', $a), 'unhealthy', 'one that fails stays out');
    my @said = said('down', $a, $from);
    is(scalar @said, 1, 'which is said once') or diag(@said);
    like($said[0] || '', qr/^unhealthy: status 500/, 'with the reason');
    $a->clear;
    becomes('down', $a, 'up', 'until it is well');
    call('down', remove => $a);
};

subtest 'probe' => sub {
    $a->set(delay => 0.2 * time_scale());
    call('probe', add => $a);
    is(state('probe', $a), 'unhealthy', 'it is out');
    is(answers('probe', 1), 502, 'no request goes to it');
    becomes('probe', $a, 'up', 'until its first check');
    is(health('probe', $a)->{checks}, 1, 'the first');
    is(join('; ', said('probe', $a)), 'healthy', 'as the log says');
    $a->clear;
    # From then on it is one like any other.
    $a->set(status => 503);
    becomes('probe', $a, 'unhealthy', 'it fails');
    is(join('; ', said('probe', $a)), 'healthy; unhealthy: status 503, 3', 'after three');
    call('probe', remove => $a);

    my $from = $node->log_size;
    $b->set(status => 503, times => 1);
    call('probe', add => $b);
    ok(wait_until(sub { @{ [ said('probe', $b, $from) ] } }), 'when the first check fails');
    is((said('probe', $b, $from))[0], 'unhealthy: status 503, 1', 'that decides at once');
    becomes('probe', $b, 'up', 'it comes back');
    cmp_ok(health('probe', $b)->{checks}, '>=', 4, 'after three that pass');
    call('probe', remove => $b);
    $_->clear for $a, $b;
};

subtest 'a new server is checked at once, not after an interval' => sub {
    my $start = time;
    call('once', add => $a);
    becomes('once', $a, 'up', 'it is healthy');
    cmp_ok(time - $start, '<', 2 * time_scale(), 'soon');
    call('once', remove => $a);
    $a->set(status => 503);
    call('once', add => $a);
    ok(wait_until(sub { health('once', $a)->{checks} == 1 }), 'so is one that comes back');
    is(state('once', $a), 'unhealthy', 'and known to be unhealthy');
    $a->clear;
    sleep 3 * $INTERVAL;
    is(health('once', $a)->{checks}, 1, 'the next one is due in an hour');
    call('once', remove => $a);
};

subtest 'a start with a state file' => sub {
    call('saved', add => $a);
    call('kept', add => $b);
    becomes('saved', $a, 'up', 'a server is healthy');
    $b->set(status => 503);
    becomes('kept', $b, 'unhealthy', 'another is not');
    ok($node->quit, 'nginx ends');
    like(slurp($node->dir . '/saved.json'), qr/\Q${\ $a->address}\E/, 'it is in the file');
    $a->set(delay => 0.1 * time_scale());
    my $from = $node->log_size;
    $node->start;
    is(state('saved', $a), 'unhealthy', 'down: restored it is out');
    is(answers('saved', 1), 502, 'and gets nothing');
    is(state('kept', $b), 'up', 'up: restored it is in, whatever it was before');
    becomes('saved', $a, 'up', 'until checks pass');
    cmp_ok(health('saved', $a)->{checks}, '>=', 4, 'as many as are asked for');
    is(join('; ', said('saved', $a, $from)), 'healthy', 'as the log says');
    becomes('kept', $b, 'unhealthy', 'the other until checks fail');
};

$node->log_is_clean;
done_testing;
