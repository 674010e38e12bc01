# A worker dies in the middle of a change, and the next one in the repair: the third finishes it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $WORKERS = 3;
my @backends = map { RegistryTest->backend(name => $_) } qw(a b);
my $node = RegistryTest->fault(
    workers => $WORKERS,
    http => 'registry main 512k { heartbeat_ttl 1h; cleanup_interval 1h; }
        upstream backend { registry main; } proxy_buffering off;',
    server => 'location /upstream/ { registry_api main; }
        location / { proxy_pass http://backend; add_header X-Worker $pid; }',
);
my %host = (ns => 'backend', host => '127.0.0.9');
api($node, 'add', { ns => 'backend', host => $_->host, port => $_->port, max_conns => 0 }) for @backends;
api($node, 'add', { %host, port => $_, weight => 0 }) for 1 .. 20;

# Of the servers what the dying do not change.
sub picture {
    my $servers = servers($node);
    for my $server (values %$servers) { delete @$server{qw(connections local_connections requests fails time_since_heartbeat)} }
    delete $servers->{'127.0.0.9:1'};
    return $servers;
}
my $before = picture();

sub dies_in {
    my (@points) = @_;
    return subtest "@points" => sub {
        my $held = $node->held(8, $WORKERS);
        my ($victim) = $node->workers;
        my $client = $node->client_of($victim);
        my $all = connections($node);
        $node->arm(join ',', "journal.half:1:$victim", map { "$_:1:worker" } @points);
        my $weight = 1 + int rand 1000;
        my $response = eval { $client->post('/upstream/add', body => form({ %host, port => 1, weight => $weight })) } || { status => 0 };
        is($response->{status}, 0, 'a worker dies in the middle of a change');
        ok($node->died, 'and as many in the repair as were to');
        my %alive = map { $_ => 1 } $node->workers;
        my $rest = 0;
        $rest += @{ $held->{$_} } for grep { $alive{$_} } keys %$held;
        cmp_ok($rest, '<', $all, 'requests died with them');
        $node->is_whole($rest, 'the zone is whole, the requests of the living are counted');
        is(servers($node)->{'127.0.0.9:1'}{weight}, $weight, 'the change that was written down is made');
        is_deeply(picture(), $before, 'all others are as they were');
        $_->close for map { @$_ } values %$held;
        $node->is_idle('in the end nothing is left of any request');
    };
}

my @points = $node->points_of('repair');
dies_in($_) for @points;
dies_in(@points[ 0 .. 4 ]);
dies_in(('lock.taken') x 6);

$node->log_is_clean;
done_testing;
