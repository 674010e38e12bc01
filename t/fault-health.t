# A worker dies when it has claimed a health check, or while it notes what came of one: the zone is
# whole, others make the check, and results count on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my %backend = map { $_ => RegistryTest->backend(name => $_) } qw(a b);
my $node = RegistryTest->fault(
    workers => 3,
    http => 'registry main 128k { heartbeat_ttl 1h; cleanup_interval 1h; health_check interval=50ms timeout=500ms fails=2 passes=2; }
        upstream backend { registry main; }',
    server => 'location /upstream/ { registry_api main; } location / { proxy_pass http://backend; }',
);
api($node, 'add', { host => $_->host, port => $_->port }) for values %backend;

sub health { my ($name) = @_; return (eval { servers($node) } || {})->{ $backend{$name}->address } || {} }
sub checks { my ($name) = @_; return (health($name)->{health} || {})->{checks} || 0 }
sub is_state { my ($name, $state) = @_; return wait_until(sub { (health($name)->{state} || '') eq $state }, 10 * time_scale()) }

my @points = $node->points_of('health');
is_deeply(\@points, [qw(checks.claimed checks.noted)], 'the points');
for my $point (@points) {
    subtest $point => sub {
        ok(is_state($_, 'up'), "$_ is up") for sort keys %backend;
        $node->arm("$point:1:worker");
        ok($node->died, 'a worker dies there, and is replaced');
        $node->is_whole(0, 'the zone is whole');
        my %before = map { $_ => checks($_) } keys %backend;
        # A check that nobody ended is taken for lost after its timeout and a second.
        for my $name (sort keys %backend) {
            ok(wait_until(sub { checks($name) > $before{$name} + 5 }, 10 * time_scale()), "$name is checked on");
        }
        is(health($_)->{state}, 'up', "$_ has stayed up") for sort keys %backend;
        $backend{a}->set(status => 503);
        ok(is_state('a', 'unhealthy'), 'a server that fails is found out');
        is($node->get('/')->{headers}{'x-backend'}, 'b', 'the other serves');
        $backend{a}->clear;
        ok(is_state('a', 'up'), 'and comes back');
        $node->is_whole(0, 'the zone is whole');
    };
}
$node->log_is_clean;
done_testing;
