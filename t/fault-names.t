# A worker dies while it takes an answer about a name, or changes a name and its addresses: the zone is
# whole, another worker goes on, and who did not get an answer asks again.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my ($dns, $port) = (RegistryTest->dns, free_port());
my $node = RegistryTest->fault(
    workers => 3,
    http => 'resolver ' . $dns->address . ' ipv6=off valid=1s;
        registry main 128k { heartbeat_ttl 1h; cleanup_interval 1h; }
        upstream backend { registry main; }',
    server => 'location /upstream/ { registry_api main; }',
);

sub call { my ($endpoint, $host, %more) = @_; return api($node, $endpoint, { host => $host, port => $port, %more })->{status} }
# Until it is answered: by a worker that lives.
sub must { my @call = @_; return wait_until(sub { call(@call) == 200 }) }
sub known { my $servers = eval { servers($node) } || {}; return join ' ', sort map { /^127\.0\.0\.(\d+):/ } keys %$servers }
sub resolves_to { my ($expected) = @_; return wait_until(sub { known() eq $expected }, 10 * time_scale()) }
sub waits { return eval { $node->waiting } // 1 }

sub dies_at {
    my ($point) = @_;
    return subtest $point => sub {
        $dns->set('app.test' => { a => [ '127.0.0.2', '127.0.0.3' ] });
        must(add => 'app.test');
        ok(resolves_to('2 3'), 'a name with two addresses');
        $node->arm("$point:1:worker");
        call(weight => 'app.test', weight => 7);
        $dns->set('app.test' => { a => [ '127.0.0.3', '127.0.0.4' ] });
        ok(resolves_to('3 4'), 'they change, whoever dies of it');
        must(weight => 'app.test', weight => 7);
        is_deeply([ map { $_->{weight} } values %{ servers($node) } ], [ 7, 7, 7 ], 'the weight reaches all of them');
        call(add => '127.0.0.4') if waits();
        call(remove => 'app.test') if waits();
        ok($node->died, 'a worker dies there, and is replaced');
        $node->is_whole(0, 'the zone is whole');
        must(add => 'app.test');
        ok(resolves_to('3 4'), 'the name is looked up as before');
        # Whether the one that died had come to that is open.
        must(add => '127.0.0.4');
        must(remove => $_) for 'app.test', '127.0.0.4';
        is_deeply(servers($node), {}, 'and goes with its addresses');
        $node->is_whole(0, 'the zone is whole');
    };
}

my @points = $node->points_of('names');
ok(@points >= 7, 'there are such points');
dies_at($_) for @points;
$node->log_is_clean;
done_testing;
