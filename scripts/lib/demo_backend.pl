#!/usr/bin/perl
# A tiny HTTP server for scripts/demo: answers each request with its name, after a
# delay, many at a time in one process. Perl's own modules are all it needs.
#
#   demo_backend.pl NAME DELAY_MS PORT_FILE
#
# It listens on 127.0.0.1, on the port that PORT_FILE names or, when there is no such
# file, on a free one, whose number it writes there.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use Time::HiRes qw(time);

my ($name, $delay, $port_file) = @ARGV;
die "Usage: $0 NAME DELAY_MS PORT_FILE\n" unless defined $port_file;

$SIG{PIPE} = 'IGNORE';

my $port = 0;
if (open my $in, '<', $port_file) {
    chomp($port = <$in>);
}
my $listener = IO::Socket::INET->new(
    LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 128, ReuseAddr => 1, Blocking => 0,
) or die "$0: no port: $@\n";

# Written apart and renamed, so that nobody reads half a number.
open my $out, '>', "$port_file.new" or die "$port_file.new: $!\n";
print {$out} $listener->sockport, "\n";
close $out or die "$port_file.new: $!\n";
rename "$port_file.new", $port_file or die "$port_file: $!\n";

my $readable = IO::Select->new($listener);
my %request;    # what has been read, by connection
my @due;        # [when to answer, connection], the soonest first: all wait equally long

while (1) {
    my $wait = @due ? $due[0][0] - time : undef;
    for my $handle ($readable->can_read(defined $wait && $wait < 0 ? 0 : $wait)) {
        if ($handle == $listener) {
            while (my $connection = $listener->accept) {
                $connection->blocking(0);
                $readable->add($connection);
                $request{$connection} = '';
            }
            next;
        }
        my $read = sysread $handle, $request{$handle}, 65536, length $request{$handle};
        next if !defined $read && $!{EAGAIN};
        if (!$read) {
            $readable->remove($handle);
            delete $request{$handle};
            close $handle;
        }
        elsif ($request{$handle} =~ s/^.*?\r\n\r\n//s) {
            push @due, [ time + $delay / 1000, $handle ];
        }
    }

    while (@due && $due[0][0] <= time) {
        my (undef, $handle) = @{ shift @due };
        next unless exists $request{$handle};    # it left meanwhile
        my $body = "$name\n";
        syswrite $handle, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: " . length($body)
            . "\r\nX-Server: $name\r\n\r\n$body";
    }
}
