# What the endpoint health says where servers are checked.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/health.pl";

our $node;
my ($a, $b) = map { RegistryTest->backend(name => $_) } qw(a b);
$node = checked({
    main  => [ 'fails=1', 'passes=1' ],
    later => [ 'initial=down', 'fails=1', 'passes=2' ],
    full  => { check => [ 'fails=1', 'passes=1' ], block => 'heartbeat_ttl ' . ms(1) . ';' },
});

# "healthy 200": what is said, and the status of health?ready.
sub ready {
    my ($registry) = @_;
    my $health = $node->get("/$registry/health");
    my $ready = $node->get("/$registry/health?ready");
    return "$health->{status} $health->{json}{status} $ready->{status} $ready->{json}{status}";
}
my ($YES, $NO) = ('200 healthy 200 healthy', '200 unhealthy 503 unhealthy');
sub counts { my $data = $node->get("/$_[0]/health")->{json}{data}; return join ' ', map { $data->{"${_}_servers"} } qw(total enabled active expired) }

subtest 'at least one is eligible' => sub {
    is(ready('main'), $NO, 'no server');
    call('main', add => $_) for $a, $b;
    is(ready('main'), $YES, 'two that are up');
    $a->set(status => 503);
    becomes('main', $a, 'unhealthy', 'one fails');
    is(ready('main'), $YES, 'one is enough');
    $b->set(status => 503);
    becomes('main', $b, 'unhealthy', 'the other too');
    is(ready('main'), $NO, 'none is left');
    is(counts('main'), '2 2 2 0', 'they are there, enabled, and heard of');
    $a->clear;
    becomes('main', $a, 'up', 'one recovers');
    is(ready('main'), $YES, 'and is enough');
    call('main', toggle => $a, action => 'disable');
    is(ready('main'), $NO, 'switched off it does not count');
    call('main', toggle => $a, action => 'enable');
    is(ready('main'), $YES, 'switched on it does');
    call('main', drain => $a);
    is(ready('main'), $NO, 'draining it does not');
    $b->clear;
    becomes('main', $b, 'up', 'the other recovers');
    is(ready('main'), $YES, 'which does');
};

subtest 'not before checks have passed' => sub {
    $a->set(delay => 0.2 * time_scale());
    is(ready('later'), $NO, 'nobody');
    call('later', add => $a);
    is(ready('later'), $NO, 'one that nobody has checked');
    becomes('later', $a, 'up', 'it passes');
    is(ready('later'), $YES, 'then it counts');
    $a->clear;
};

subtest 'with heartbeats' => sub {
    call('full', add => $a);
    is(ready('full'), $YES, 'one that speaks and passes');
    ok(wait_until(sub { state('full', $a) eq 'expired' }), 'it falls silent');
    is(ready('full'), $NO, 'which passing checks do not make up for');
    call('full', refresh => $a);
    is(ready('full'), $YES, 'with a heartbeat it counts');
};

$node->log_is_clean;
done_testing;
