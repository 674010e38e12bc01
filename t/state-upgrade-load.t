# While two nginx share a state file, during a binary upgrade: traffic, heartbeats that come to
# the one or the other, registrations, and both killed at once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/state-upgrade.pl";

my $SECOND = 1 * time_scale();
our ($first, $second);

sub on { my ($port) = @_; return { host => '127.0.0.9', port => $port } }
sub becomes {
    my ($node, $master, $ports, $what) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $is;
    return ok(wait_until(sub { ($is = ports_of($node, $master)) eq $ports }, 3 * $SECOND), $what)
        || diag("$is instead of $ports");
}

subtest 'a heartbeat to either side is one to both' => sub {
    my $ttl = 3 * time_scale();
    my $node = node("heartbeat_ttl ${ttl}s; cleanup_interval 100ms; on_expire remove;");
    my $old = $node->pid;
    my $new = $node->upgrade;
    my $end = time + 1.8 * $ttl;
    my ($out, $rounds) = (0, 0);
    while (time < $end) {
        # One server's come to the old side alone, the other's to the new one.
        ask($node, $old, 'refresh', { host => $first->host, port => $first->port });
        ask($node, $new, 'refresh', { host => $second->host, port => $second->port });
        for my $side ($old, $new) {
            my $data = ask($node, $side, 'status')->{json}{data};
            next if 2 == grep { $_->{is_active} } @$data;
            $out++;
            diag("round $rounds: ", explain($data));
        }
        $rounds++;
        sleep $ttl / 20;
    }
    is($out, 0, "neither side thinks one silent, in $rounds rounds");
    # And silence on both is silence.
    for my $side ($old, $new) {
        ok(wait_until(sub { !@{ ask($node, $side, 'status')->{json}{data} } }, 4 * $ttl), 'a server that is silent goes');
    }
    $node->winch_old;
    $node->finish_upgrade;
    $node->log_is_clean;
};

subtest 'under traffic and registrations nothing fails and nothing is lost' => sub {
    my $node = node('heartbeat_ttl 1h;');
    my $load = load_start(conns => 4, url => $node->url('/'));
    my (%there, $n);
    # Registers, and removes now and then, over new connections: by chance to either side.
    my $register = sub {
        for (1 .. 20) {
            $n++;
            is_ok(api($node, 'add', { ns => 'backend', host => '127.0.0.9', port => $n, weight => 0 }));
            $there{$n} = 1;
        }
    };
    my $all = sub { return join ',', sort { $a <=> $b } keys %there };
    $register->();
    for my $round (1, 2) {
        $node->upgrade;
        $register->();
        ok($node->winch_old, "round $round: the old workers go");
        $register->();
        if ($round == 1) {
            ok($node->rollback, 'rolled back');
        }
        else {
            ok($node->finish_upgrade, 'finished');
        }
        $register->();
        becomes($node, $node->pid, $all->(), 'all that were registered are there');
    }
    my $result = load_stop($load);
    is($result->{failed}, 0, 'no request failed') or diag(explain($result));
    $node->log_is_clean;
};
sub is_ok {
    my ($response) = @_;
    return if $response->{status} == 200;
    fail("a server registers: $response->{status} " . ($response->{error} || $response->{body}));
}

subtest 'of both sides killed, the file is all that is needed' => sub {
    my $node = node('heartbeat_ttl 1h;');
    my $old = $node->pid;
    my $new = $node->upgrade;
    ask($node, $old, 'add', on(1));
    ask($node, $new, 'add', on(2));
    sleep 1 * $SECOND;    # what is older than a second survives
    my @workers = ($node->workers($old), $node->workers($new));
    kill 'KILL', $old, $new, @workers;
    wait_until(sub { !grep { alive($_) } $old, $new, @workers });
    delete @$node{qw(pid old_pid)};
    unlink map { $node->dir . "/logs/$_" } 'nginx.pid', 'nginx.pid.oldbin';
    $node->start;
    is(ports_of($node, $node->pid), '1,2', 'both are there');
    $node->log_is_clean;
};

done_testing;
