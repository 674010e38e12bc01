# Zones with little room: servers that come and go through Redis leave nothing behind, and when there are more
# than a node has room for, it has as many as it can.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);

# A node with a zone of that size.
sub sized {
    my ($size, $redis) = @_;
    my $node = node(redis => $redis, start => 0);
    $node->set_conf(http => $node->{http} =~ s/registry main 1m/registry main $size/r);
    $node->start;
    connected($node) or die "no sync\n";
    return $node;
}
sub addr { my ($n) = @_; return '127.1.' . int($n / 250) . '.' . (1 + $n % 250) . ':80' }

subtest 'come and gone, many times over' => sub {
    my $redis = RegistryTest->redis;
    my ($small, $other) = my @nodes = (sized('128k', $redis), sized('1m', $redis));
    my $room = 0;
    $room++ while call($small, add => addr($room))->{status} == 200;
    cmp_ok($room, '>', 20, "there is room for $room");
    ok(same(\@nodes, 'default', expected => sub { @{ $_[0] } == $room }), 'on both');
    change($small, remove => addr($_)) for 0 .. $room - 1;
    ok(pushed($small), 'all are removed, which Redis knows');
    my %failed;
    for my $round (1 .. 3) {
        for my $n (0 .. $room - 1) {
            my $status = call($small, add => addr(1000 * $round + $n))->{status};
            $failed{$status}++ if $status != 200;
        }
        ok(same(\@nodes, 'default', timeout => 10 * time_scale(), expected => sub { @{ $_[0] } == $room }), 'others in their place') or last;
        change($small, remove => addr(1000 * $round + $_)) for 0 .. $room - 1;
        ok(pushed($small), 'which go as well');
    }
    is_deeply(\%failed, {}, 'each time there is room for as many');
    agree(\@nodes, [], 'and none is left');
    # The same through Redis.
    for my $round (5 .. 7) {
        change($other, add => addr(1000 * $round + $_)) for 0 .. $room - 1;
        ok(same(\@nodes, 'default', timeout => 10 * time_scale(), expected => sub { @{ $_[0] } == $room }), 'so it is for what comes from elsewhere') or last;
        change($other, remove => addr(1000 * $round + $_)) for 0 .. $room - 1;
        agree(\@nodes, [], 'and goes', timeout => 10 * time_scale());
    }
    log_says($_, 'used', 'the log') for @nodes;
    $_->log_is_clean for @nodes;
};

subtest 'more than there is room for' => sub {
    my $redis = RegistryTest->redis;
    my ($small, $other) = (sized('128k', $redis), sized('1m', $redis));
    my $backend = RegistryTest->backend(name => 'web');
    change($other, add => $backend, ns => 'other');
    becomes($small, $backend, {}, 'a server', ns => 'other');
    change($other, add => addr($_)) for 0 .. 499;
    my $line = $small->wait_log(qr/have room here/, 10 * time_scale());
    like($line || '', qr/\[error\] .*registry "main": not all servers in Redis have room here/, 'the log says that it is not enough');
    ok(pushed($small), 'it goes on');
    my $count = scalar split ' ', known($small);
    cmp_ok($count, '>', 20, "with as many as it can: $count");
    is(answers($small, 2, '/other/'), 'web', 'requests are served');
    change($other, weight => $backend, ns => 'other', weight => 7);
    becomes($small, $backend, { weight => 7 }, 'changes of those that it has come', ns => 'other');
    is(call($small, add => addr(9999))->{status}, 507, 'no more can be added');
    sleep 3 * $INTERVAL;
    is(scalar(grep { /have room here/ } $small->error_log =~ /(.*)\n/g), 1, 'the log has it once');
    is(scalar(keys %{ $redis->registry }), 500, 'nobody loses one by it');
    is(scalar(split ' ', known($other)), 500, 'where there is room neither');
    $small->log_is_clean;
    $other->log_is_clean;
};

done_testing;
