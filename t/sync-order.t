# Changes that follow each other at once, on one node and on both: what was said last counts, however long the way
# to Redis is just then.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
my $redis = RegistryTest->redis;
my @proxies = map { RegistryTest->proxy($redis->address) } 1, 2;
my ($one, $two) = my @nodes = map { node(redis => $redis->url(port => $_->port), settings => { redis_timeout => ms(2 * time_scale()) }) } @proxies;
connected($_) for @nodes;

# A way that takes its time, another one for each message.
sub jitter {
    my ($most) = @_;
    return RegistryTest::Process::fork_child(sub {
        while (1) {
            $proxies[0]->delay(rand $most);
            sleep 0.01 + rand 0.05;
        }
    }, keep => [ map { $_->{control} } @proxies ]);
}
sub settled {
    ok(pushed($_, 10 * time_scale()), 'all is pushed') for @nodes;
    ok(same(\@nodes, 'default'), 'both are equal');
    return redis_agrees($redis, \@nodes, 'Redis too');
}

for my $most (0, 0.2) {
    subtest $most ? 'a slow and unsteady way' : 'the usual way' => sub {
        my $child = $most ? jitter($most * time_scale()) : undef;
        my (%weight, %there, %off);
        for my $round (1 .. 20) {
            for my $n (1 .. 5) {
                my $addr = "127.0.0.9:$n";
                # Not to be stopped by one that has been lost: all is told at the end.
                call($one, remove => $addr) if $there{$n};
                change($one, add => $addr, weight => $weight{$n} = 1 + int rand 1000);
                $there{$n} = 1;
            }
            for my $n (6 .. 10) {
                change($one, add => "127.0.0.9:$n") if !$weight{$n};
                change($one, weight => "127.0.0.9:$n", weight => $weight{$n} = 1 + int rand 1000) for 1, 2;
            }
            for my $n (11 .. 15) {
                change($one, add => "127.0.0.9:$n") if !$weight{$n}++;
                disable($one, "127.0.0.9:$n");
                $off{$n} = $round % 2;
                enable($one, "127.0.0.9:$n") if !$off{$n};
            }
            for my $n (16 .. 20) {
                change($one, add => "127.0.0.9:$n");
                call($one, remove => "127.0.0.9:$n");
                $weight{$n} = undef;
            }
            sleep rand 0.06;
        }
        settled();
        if ($child) {
            RegistryTest::Process::stop_process($child, KILL => 5);
            $_->heal for @proxies;
            connected($_) for @nodes;
        }
        sleep 2 * $INTERVAL;
        for my $node (@nodes) {
            my $servers = servers($node, 'default');
            my @wrong = grep { !$servers->{"127.0.0.9:$_"} || $servers->{"127.0.0.9:$_"}{weight} != $weight{$_} } 1 .. 5;
            is("@wrong", '', 'removed and added again at once: it is there, as it was added last');
            @wrong = grep { $servers->{"127.0.0.9:$_"}{weight} != $weight{$_} } 6 .. 10;
            is("@wrong", '', 'one weight after the other: the last');
            @wrong = grep { ($servers->{"127.0.0.9:$_"}{state} eq 'down') != $off{$_} } 11 .. 15;
            is("@wrong", '', 'disabled and enabled: the last');
            @wrong = grep { $servers->{"127.0.0.9:$_"} } 16 .. 20;
            is("@wrong", '', 'added and removed: it is gone');
        }
        for my $n (1 .. 20) { call($one, remove => "127.0.0.9:$n") }
        agree(\@nodes, [], 'all go');
    };
}

# Orders given by one person to two nodes, one after the other.
subtest 'one node with a slow way, and another without' => sub {
    my @lost;
    for my $round (1 .. 5) {
        my $addr = "127.0.0.9:$round";
        change($two, add => $addr);
        becomes($one, $addr, {}, 'a server');
        $proxies[0]->delay(0.3 * time_scale());
        change($one, weight => $addr, weight => 5);
        sleep 0.15 * time_scale();
        change($two, weight => $addr, weight => 7);
        settled();
        push @lost, $round if server($one, $addr)->{weight} != 7;
        $proxies[0]->heal(keep => 1);
    }
    is("@lost", '', 'what was said later counts, though it arrived earlier');
};

log_says($_, qr/^used(?: away again)*$/, 'the log') for @nodes;
$_->log_is_clean for @nodes;
done_testing;
