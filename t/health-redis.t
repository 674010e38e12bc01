# Servers that come from Redis are checked by each node for itself, and what a node finds stays with it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/sync.pl";

my $redis = RegistryTest->redis;
my %check = map { $_ => "type=http uri=/$_ interval=" . ms(0.1 * time_scale()) . ' timeout=' . ms(0.5 * time_scale()) . ' fails=2 passes=2' } qw(one two);
my @nodes = map { node(redis => $redis, settings => { health_check => $check{$_} }) } qw(one two);
connected($_) or die "no sync\n" for @nodes;
my $probed = RegistryTest->probed;
sub paths { my %by; $by{ $_->{line} || '' }++ for $probed->log($_[0]); return join ' ', sort map { m{^GET /(\w+) } ? $1 : $_ } keys %by }

change($nodes[0], add => $probed->address);
becomes($nodes[1], $probed->address, {}, 'a server that one node is told of comes to the other');
ok(wait_until(sub { paths() eq 'one two' }), 'both check it') or diag(paths());
$probed->behave('status 503');
becomes($_, $probed->address, { state => 'unhealthy' }, 'both find it unhealthy') for @nodes;
my ($meta) = map { $_->{meta} } $redis->registry('default')->{ $probed->address };
ok($meta && $meta->{enabled}, 'in Redis it is as it was');

subtest 'each for itself' => sub {
    # One that only the second node takes for well.
    $nodes[1]->set_conf(http => $nodes[1]{http} =~ s/health_check /health_check status=503 /r);
    ok($nodes[1]->reload, 'other checks in one of them');
    becomes($nodes[1], $probed->address, { state => 'up' }, 'there it is up');
    sleep 0.5 * time_scale();
    is(server($nodes[0], $probed->address)->{state}, 'unhealthy', 'in the other it is not');
    is($nodes[0]->get('/')->{status}, 502, 'one gives it no requests');
    is($nodes[1]->get('/')->{status}, 503, 'the other does');
};

subtest 'without Redis' => sub {
    $redis->stop;
    ok(disconnected($nodes[0]), 'it is away');
    my $from = $probed->count;
    ok(wait_until(sub { paths($from) eq 'one two' }), 'checks go on');
    $probed->behave('ok');
    becomes($nodes[0], $probed->address, { state => 'up' }, 'and decide');
    $redis->start;
    ok(connected($_), 'it is back') for @nodes;
};

subtest 'a server that is written into Redis by hand' => sub {
    my $other = RegistryTest->probed(how => 'status 503');
    $redis->cli(HSET => 'upstream:servers:meta', $other->address, '{"host":"127.0.0.1","port":' . $other->port . '}');
    becomes($nodes[0], $other->address, { state => 'unhealthy' }, 'is checked too');
};

subtest 'removed at one node' => sub {
    change($nodes[1], remove => $probed->address);
    becomes($nodes[0], $probed->address, undef, 'it goes from the other');
    ok(wait_until(sub { !grep { !$_->{ended} } $probed->log }), 'what was under way ends');
    my $count = $probed->count;
    sleep 0.5 * time_scale();
    is($probed->count, $count, 'and nobody checks it any more');
};

$_->log_is_clean for @nodes;
done_testing;
