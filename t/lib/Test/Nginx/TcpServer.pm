package Test::Nginx::TcpServer;

# The sections tcp_listen, tcp_reply, tcp_reply_delay, tcp_query, tcp_query_len and
# tcp_no_close: a server that accepts one connection, notes what it is sent, and replies.

use strict;
use warnings;

use RegistryTest::Process qw(fork_child kill_group slurp spew temp_dir wait_until);
use Socket;
use Test::Nginx::Check qw(report is_str);
use Test::Nginx::Client qw(parse_time);
use Time::HiRes qw(sleep);

# Starts the server that the block asks for; returns nothing when it asks for none.
sub start {
    my ($class, $block) = @_;
    my $target = $block->tcp_listen;
    return unless defined $target;
    my $self = bless { block => $block, file => temp_dir() . '/query' }, $class;

    my $is_path = $target =~ m{\.sock$};
    socket my $listener, $is_path ? PF_UNIX : PF_INET, SOCK_STREAM, 0 or die "socket: $!\n";
    if ($is_path) { unlink $target }
    else          { setsockopt $listener, SOL_SOCKET, SO_REUSEADDR, 1 }
    bind $listener, $is_path ? pack_sockaddr_un($target) : pack_sockaddr_in($target, INADDR_LOOPBACK)
        or die "tcp_listen: cannot bind to $target: $!\n";
    listen $listener, 5 or die "listen: $!\n";

    my $reply = $block->tcp_reply;
    my $delay = parse_time(scalar $block->tcp_reply_delay);
    my $length = $block->tcp_query_len;
    $length = length $block->tcp_query if !defined $length && defined $block->tcp_query;
    my $hold = defined $block->tcp_no_close;
    $self->{pid} = fork_child(sub {
        accept my $client, $listener or die "accept: $!\n";
        my $got = '';
        do {
            sysread($client, my $bytes, 65536) or last;
            $got .= $bytes;
            spew("$self->{file}.part", $got);
            rename "$self->{file}.part", $self->{file};
        } while length $got < ($length || 0);
        sleep $delay if $delay;
        $reply = $reply->($got) if ref $reply eq 'CODE';
        for my $part (ref $reply eq 'ARRAY' ? @$reply : $reply) {
            syswrite $client, $part if defined $part;
        }
        sleep 3600 if $hold;
        close $client;
    }, keep => [$listener]);
    return $self;
}

# Tests what it was sent, and ends it.
sub finish {
    my ($self) = @_;
    my $block = $self->{block};
    my ($query, $length) = (scalar $block->tcp_query, scalar $block->tcp_query_len);
    if (defined $query || defined $length) {
        my $enough = defined $length ? $length : length $query;
        wait_until(sub { length slurp($self->{file}) >= $enough }, 1);
    }
    my $got = slurp($self->{file});
    kill_group($self->{pid});
    is_str($got, $query, $block->name . ' - tcp_query ok') if defined $query;
    is_str(length $got, $length, $block->name . ' - TCP query length ok') if defined $length;
    return;
}

1;
