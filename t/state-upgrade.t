# A binary upgrade (USR2, WINCH, QUIT), and one that is rolled back: two nginx with a zone each,
# and one state file between them. No server is lost, and none that was removed comes back.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/state-upgrade.pl";

my $SECOND = 1 * time_scale();
our ($first, $second);

sub server_of {
    my ($node, $master, $port) = @_;
    return (grep { $_->{port} == $port } @{ ask($node, $master, 'status')->{json}{data} })[0] || {};
}
sub on { my ($port) = @_; return { host => '127.0.0.9', port => $port } }
sub becomes {
    my ($node, $master, $ports, $what) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $is;
    return ok(wait_until(sub { ($is = ports_of($node, $master)) eq $ports }, 3 * $SECOND), $what)
        || diag("$is instead of $ports");
}
sub writers {
    my ($node, $master) = @_;
    return grep {
        my $pid = $_;
        grep { (readlink($_) || '') =~ /\.json\.lock$/ } glob "/proc/$pid/fd/*";
    } $node->workers($master);
}

subtest 'both sides learn of each other, and the new one stays' => sub {
    my $node = node('heartbeat_ttl 1h;');
    my $old = $node->pid;
    api($node, 'add', { ns => 'backend', %{ on($_) } }) for 1 .. 4;
    # Right before the new binary reads the file.
    my $new = $node->upgrade;
    ok($new != $old, 'a second nginx runs');
    is(ports_of($node, $new), '1,2,3,4', 'from the start it has the servers of the first, the latest too');
    becomes($node, $old, '1,2,3,4', 'which has them still');

    is(ask($node, $old, 'add', on(5))->{status}, 200, 'added on the old side');
    becomes($node, $new, '1,2,3,4,5', 'it is on the new side');
    is(ask($node, $new, 'add', on(6))->{status}, 200, 'added on the new side');
    becomes($node, $old, '1,2,3,4,5,6', 'it is on the old side');
    is(ask($node, $old, 'remove', on(1))->{status}, 200, 'removed on the old side');
    becomes($node, $new, '2,3,4,5,6', 'it goes from the new side');
    is(ask($node, $new, 'remove', on(5))->{status}, 200, 'removed on the new side');
    becomes($node, $old, '2,3,4,6', 'it goes from the old side');
    becomes($node, $new, '2,3,4,6', 'and comes back on neither');
    ask($node, $old, 'weight', { %{ on(2) }, weight => 7 });
    ask($node, $new, 'toggle', { %{ on(3) }, action => 'disable' });
    ask($node, $new, 'drain', on(4));
    for my $side ($old, $new) {
        ok(wait_until(sub { (server_of($node, $side, 2)->{weight} || 0) == 7 }, 3 * $SECOND), 'a weight, ');
        ok(wait_until(sub { (server_of($node, $side, 3)->{state} || '') eq 'down' }, 3 * $SECOND), 'a switch ');
        ok(wait_until(sub { (server_of($node, $side, 4)->{state} || '') eq 'draining' }, 3 * $SECOND), 'and a drain are known to both');
    }

    # Right before the old workers go.
    ask($node, $old, 'add', on(7));
    ok($node->winch_old, 'the old workers go');
    becomes($node, $new, '2,3,4,6,7', 'and what was registered with them last is not lost');
    ok($node->finish_upgrade, 'the old master goes');
    api($node, 'add', { ns => 'backend', %{ on(8) } });
    ok(wait_until(sub { slurp($node->dir . '/main.json') =~ /127\.0\.0\.9:8"/ }, $SECOND), 'the new side writes');
    $node->stop;
    $node->start;
    is(ports_of($node, $node->pid), '2,3,4,6,7,8', 'which a restart reads');
    $node->log_is_clean;
};

subtest 'rolled back, before the old workers have gone and after' => sub {
    for my $winch (0, 1) {
        my $node = node('heartbeat_ttl 1h;');
        my $old = $node->pid;
        api($node, 'add', { ns => 'backend', %{ on($_) } }) for 1 .. 3;
        my $new = $node->upgrade;
        becomes($node, $new, '1,2,3', 'a second nginx has the servers');
        if ($winch) {
            ok($node->winch_old, 'the old workers go');
            api($node, 'add', { ns => 'backend', %{ on($_) } }) for 4 .. 6;
            api($node, 'remove', { ns => 'backend', %{ on(1) } });
        }
        else {
            ask($node, $new, 'add', on($_)) for 4 .. 6;
            ask($node, $new, 'remove', on(1));
        }
        ok($node->rollback, 'right after changes on the new side it quits');
        becomes($node, $old, '2,3,4,5,6', 'the old side has all that it had: none is lost, none comes back');
        ok(wait_until(sub { writers($node, $old) == 1 }, $SECOND), 'one of its workers is the one that writes');
        api($node, 'add', { ns => 'backend', %{ on(9) } });
        ok(wait_until(sub { slurp($node->dir . '/main.json') =~ /127\.0\.0\.9:9"/ }, $SECOND), 'and does');
        # And again.
        $new = $node->upgrade;
        becomes($node, $new, '2,3,4,5,6,9', 'the next upgrade takes over all of it');
        $node->winch_old;
        ok($node->finish_upgrade, 'and is finished');
        becomes($node, $new, '2,3,4,5,6,9', 'with all of it');
        $node->log_is_clean;
    }
};

done_testing;
