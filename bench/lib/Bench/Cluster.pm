package Bench::Cluster;

# Nodes of nginx that share their servers through one Redis, all of them processes of ours.

use strict;
use warnings;

use Bench::Load qw(in_order);
use Bench::System;
use RegistryTest::Process qw(find_program wait_until);

# What redis-server needs to be measured with; an empty text when it is here.
sub missing {
    return -x find_program('redis-server') ? '' : 'Redis is not installed: scripts/setup';
}

#   nodes    how many
#   redis    0: without
#   backend  the port of their servers
#   more     directives for the registry
#   and what Bench::System takes
sub new {
    my ($class, %opt) = @_;
    my $self = bless { redis => undef, nodes => [] }, $class;
    if (!defined $opt{redis} || $opt{redis}) {
        require RegistryTest::Redis;
        $self->{redis} = RegistryTest::Redis->new(socket => 1);
    }
    my ($nodes, $more) = (delete $opt{nodes}, delete $opt{more});
    $self->add_node(%opt, more => $more) for 1 .. $nodes;
    return $self;
}

# url: another way to Redis than its own.
sub add_node {
    my ($self, %opt) = @_;
    my $more     = delete $opt{more};
    my $url      = delete $opt{url};
    my $registry = 'heartbeat_ttl 1h; ' . (defined $more ? $more : '');
    $url = $self->{redis}->url if $self->{redis} && !defined $url;
    $registry .= " redis $url; redis_node node" . (1 + @{ $self->{nodes} }) . ';' if $self->{redis};
    delete $opt{redis};
    my $node = Bench::System->new(servers => 0, register => 0, %opt, system => 'module', registry => $registry);
    push @{ $self->{nodes} }, $node;
    return $node;
}

sub node  { return $_[0]{nodes}[ $_[1] ] }
sub nodes { return @{ $_[0]{nodes} } }
sub redis { return $_[0]{redis} }

# All processes.
sub pids {
    my ($self) = @_;
    return (map({ ($_->{pid}, $_->workers) } $self->nodes), $self->{redis} ? $self->{redis}->pid : ());
}

# Adds servers FROM to TO by one node; without Redis by each.
sub register {
    my ($self, $from, $to) = @_;
    for my $node ($self->{redis} ? $self->node(0) : $self->nodes) {
        my @paths = map { "/upstream/add?ns=backend&port=$node->{backend}&host=" . Bench::System::server_host($_) } $from .. $to;
        in_order($node->address, 'POST', \@paths, sub {
            my ($response) = @_;
            die "a server was refused: $response->{status} $response->{body}\n" if $response->{status} != 200;
            return 1;
        });
    }
    return;
}

# Waits until each node has so many servers in the namespace that the load is for, and nothing is
# still to be told.
sub settle {
    my ($self, $servers) = @_;
    for my $node ($self->nodes) {
        my $client = RegistryTest::Client->new($node->address);
        wait_until(sub {
            my $health = $client->get('/upstream/health?ns=backend')->{json}{data} || {};
            return 0 if ($health->{total_servers} || 0) != $servers;
            return 1 if !$self->{redis};
            my $sync = sync_of($client);
            return $sync->{connected} && !$sync->{pending} && $sync->{nodes} >= $self->nodes;
        }, 60) or die "the nodes did not agree on $servers servers\n";
        $client->close;
    }
    return;
}

# What a node says of Redis. Of the last bytes of its list alone: JSON::PP takes seconds for ten
# thousand servers.
sub sync_of {
    my ($client) = @_;
    my $body = $client->get('/upstream/status?ns=backend', undecoded => 1)->{body};
    my ($text) = defined $body ? $body =~ /"sync":(\{[^{}]*\})/ : ();
    return defined $text ? JSON::PP->new->decode($text) : {};
}

sub stop {
    my ($self) = @_;
    $_->stop for $self->nodes;
    $self->{redis}->stop if $self->{redis};
    return;
}

1;
