# Killed at any moment, all of it at once, nginx has lost at most the last second: what was
# answered with success before that is there again after the next start.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $SECOND = 1 * time_scale();
srand;

sub node {
    my (%opt) = @_;
    return RegistryTest->nginx(
        workers => 2, %opt,
        http => 'registry main 2m { heartbeat_ttl 1h; state_file main.json; } upstream backend { registry main; }',
        server => 'location /upstream/ { registry_api main; } keepalive_requests 100000;',
    );
}

# Registers and removes as fast as it can for some seconds. Notes when each server was known
# to be there, or to be gone: { port => [ there or not, time of the answer ] }.
sub change {
    my ($node, $known, $seconds, $each) = @_;
    my ($end, $client) = (time + $seconds, undef);
    while (time < $end) {
        $client ||= $node->client;
        my $port = 1 + int rand 1000;
        my $there = !($known->{$port} && $known->{$port}[0]);
        my $before = $known->{$port};
        # Until the answer has come either may be so.
        $known->{$port} = [ undef, time ];
        my $body = form({ ns => 'backend', host => '127.0.0.9', port => $port });
        my $response = $client->request('POST', '/upstream/' . ($there ? 'add' : 'remove'), body => $body);
        if ($response->{status} == 200) { $known->{$port} = [ $there, time ] }
        else {
            # Its worker was killed; the next one has the answer.
            $client->close;
            undef $client;
            my $is = servers($node, 'backend')->{"127.0.0.9:$port"};
            $known->{$port} = [ !!$is, time ];
        }
        $each->() if $each;
    }
    return;
}

# What was so for longer than a second at a time, and is not now.
sub lost {
    my ($node, $known, $when) = @_;
    my $now = servers($node, 'backend');
    my @lost;
    for my $port (sort { $a <=> $b } keys %$known) {
        my ($there, $since) = @{ $known->{$port} };
        next if !defined $there || $when - $since < $SECOND;
        push @lost, "$port " . ($there ? 'is gone' : 'is there') if $there != exists $now->{"127.0.0.9:$port"};
    }
    # What is there now is what is known from now on.
    for my $port (keys %$known) {
        $known->{$port} = [ exists $now->{"127.0.0.9:$port"}, $when - $SECOND ];
    }
    return \@lost;
}

subtest 'master and workers at once' => sub {
    my $node = node();
    my (%known, $old);
    for my $round (1 .. 4) {
        change($node, \%known, 0.6 + rand(1) * $SECOND);
        my $when = time;
        $node->kill_all;
        $old = grep { defined $_->[0] && $when - $_->[1] >= $SECOND } values %known;
        $node->start;
        is_deeply(lost($node, \%known, $when), [], "round $round: of $old changes older than a second none is lost");
    }
    ok(!-e $node->dir . '/main.json.bad', 'and never was the file a bad one');
    $node->log_is_clean;
};

subtest 'workers now and then, and then all' => sub {
    my $node = node(workers => 3);
    my ($kills, $next, %known) = (0, 0);
    for my $round (1, 2) {
        change($node, \%known, 1.6 * $SECOND, sub {
            return if time < $next;
            my @workers = $node->workers or return;
            kill 'KILL', $workers[ rand @workers ];
            $kills++;
            $next = time + 0.2 + rand 0.4;
        });
        my $when = time;
        $node->kill_all;
        $node->start;
        is_deeply(lost($node, \%known, $when), [], "round $round: no change older than a second is lost");
    }
    my $said = () = $node->error_log =~ /exited on signal 9/g;
    ok($said > $kills / 2, "$kills workers were killed");
    $node->log_is_clean(allow => [ [ qr/exited on signal 9/, $said ] ]);
};

subtest 'while it ends, or starts' => sub {
    my $node = node();
    my %known;
    for my $signal ('TERM', 'QUIT', 'HUP') {
        change($node, \%known, 0.3 * $SECOND);
        sleep $SECOND;
        my $when = time;
        $node->signal($signal);
        sleep rand 0.05;
        $node->kill_all;
        $node->start;
        is_deeply(lost($node, \%known, $when), [], "killed after $signal");
    }
    $node->log_is_clean;
};

done_testing;
