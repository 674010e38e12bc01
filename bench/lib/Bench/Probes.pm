package Bench::Probes;

# What active health checks cost: the CPU time of a node's workers that check thousands of servers,
# less that of a twin that has the same servers and checks none. Results are as in Bench::Sync.

use strict;
use warnings;

use Bench::Cpu qw(cpu_seconds others pin processors rest_of);
use Bench::Load;
use Bench::Stats qw(median quantile_bound);
use Bench::System;
use RegistryTest::Client ();
use RegistryTest::Process qw(wait_until);
use Time::HiRes qw(time sleep);

my $SERVERS = 5_000;

# The time between two checks of a server, in seconds, and the directives for what is checked.
my $INTERVAL = 5;
my %CHECK = (
    http => "health_check type=http uri=/ interval=${INTERVAL}s timeout=2s;",
    tcp  => "health_check type=tcp interval=${INTERVAL}s timeout=2s;",
);

# A node with two workers, both on the first processor; the backend has the others.
sub _node {
    my ($backend, $check) = @_;
    my $node = Bench::System->new(
        system => 'module', servers => $SERVERS, workers => 2, backend => $backend->{port},
        registry => "heartbeat_ttl 1h; $check");
    pin((processors())[0], $node->workers);
    return $node;
}

# Checks that the backend has answered: requests of http, connections of tcp.
sub _answered {
    my ($client, $type) = @_;
    my $body = $client->get('/stub')->{body} || '';
    my ($accepted, $requests) = $body =~ /^ (\d+) \d+ (\d+) *$/m or die "the backend tells no counts: $body\n";
    return $type eq 'http' ? $requests : $accepted;
}

sub _up {
    my ($node) = @_;
    my $body = RegistryTest::Client->new($node->address)->get('/upstream/status', undecoded => 1, timeout => 30)->{body} || '';
    my $up = () = $body =~ /"state":"up"/g;
    return $up;
}

# Checks of that type: per cent of a processor in each of a few windows of so many seconds.
sub checks {
    my ($type, $windows, $seconds, $directive) = @_;
    $directive = $CHECK{$type} unless defined $directive;
    my $backend = Bench::System->backend(1000, counts => 1);
    $backend->move(rest_of(1));
    my ($node, $twin);
    if (!eval { ($node, $twin) = map { _node($backend, $_) } $directive, ''; 1 }) {
        my $why = $@;
        $_->stop for grep { $_ } $node, $backend;
        return { missing => 'this module knows no health_check' } if $why =~ /unknown directive "health_check"/;
        die $why;
    }
    my $client = RegistryTest::Client->new("127.0.0.1:$backend->{port}");
    my @ours   = ((map { ($_->{pid}, $_->workers) } $node, $twin), $backend->{pid}, $backend->workers);
    # All have been checked once.
    sleep $INTERVAL + 1;

    my (@share, @with, @without, $disturbed, $checks, $cpu);
    for (1 .. $windows) {
        others(@ours);
        my $answered = _answered($client, $type);
        my ($began, @before) = (time, map { (cpu_seconds($_->workers))[0] } $node, $twin);
        sleep $seconds;
        my ($ended, @after) = (time, map { (cpu_seconds($_->workers))[0] } $node, $twin);
        my ($with, $without) = map { 100 * ($after[$_] - $before[$_]) / ($ended - $began) } 0, 1;
        push @with,    $with;
        push @without, $without;
        push @share,   $with - $without;
        my $made = _answered($client, $type) - $answered;
        my $due  = $SERVERS * ($ended - $began) / $INTERVAL;
        die sprintf("%d checks were made in %.1f s, and %.0f were due\n", $made, $ended - $began, $due) if $made < 0.9 * $due;
        $checks += $made;
        $cpu    += ($with - $without) / 100 * ($ended - $began);
        $disturbed++ if others(@ours) > $Bench::Load::OTHERS;
    }
    my $up = _up($node);
    die "$up of $SERVERS servers are up\n" if $up != $SERVERS;
    my @complaints = map { $_->complaints } $node, $twin;
    $client->close;
    $_->stop for $node, $twin, $backend;
    my $share = median(@share);
    return {
        number => $share, value => sprintf('%.2f %%', $share), against => sprintf('%.2f %%', median(@without)),
        bound => quantile_bound(0.5, @share), disturbed => $disturbed && 2 * $disturbed > $windows ? 'worse' : '',
        notes => [
            sprintf('%d windows of %d s: %s %% with and %s %% without; %d checks, %.1f us of CPU time each', $windows, $seconds,
                join(', ', map { sprintf '%.2f', $_ } @with), join(', ', map { sprintf '%.2f', $_ } @without), $checks, $cpu / $checks * 1e6),
            @complaints ? sprintf('%d lines in the logs, the first: %s', scalar @complaints, $complaints[0]) : (),
        ],
    };
}

1;
