package Bench::Pace;

# Requests at a steady pace, and how long each one took: a load that leaves the machine room, so
# that a delay shows as one. And the small client that it is made with, which costs less than
# RegistryTest::Client.

use strict;
use warnings;

use Exporter 'import';
use Fcntl qw(F_GETFL F_SETFL O_NONBLOCK);
use RegistryTest::Client qw(start_connect connect_error format_request);
use RegistryTest::Process qw(fork_child slurp spew temp_dir wait_until alive stop_process);
use Time::HiRes qw(time sleep);

our @EXPORT_OK = qw(start_paced finish_paced request_bytes);

# One connection that is kept.
sub new {
    my ($class, $address) = @_;
    my $socket = start_connect($address);
    my $bits = '';
    vec($bits, fileno $socket, 1) = 1;
    select undef, $bits, undef, 10;
    my $error = connect_error($socket);
    die "connect to $address: $error\n" if $error;
    fcntl $socket, F_SETFL, fcntl($socket, F_GETFL, 0) & ~O_NONBLOCK or die "fcntl: $!\n";
    return bless { socket => $socket, address => $address }, $class;
}

# The bytes of a request without a body.
sub request_bytes {
    my ($method, $path) = @_;
    return format_request($method, $path, headers => $method eq 'POST' ? { 'Content-Length' => 0 } : {});
}

# Sends these bytes, a request, and waits for the answer: (status, body).
sub ask {
    my ($self, $bytes) = @_;
    $self->send_bytes($bytes);
    1 until $self->read_some;
    return @$self{qw(status body)};
}

sub send_bytes {
    my ($self, $bytes) = @_;
    @$self{qw(got head wanted)} = ('', 0, undef);
    syswrite $self->{socket}, $bytes or die "write to $self->{address}: $!\n";
    return;
}

# Reads once, and waits for that; true when the answer is whole.
sub read_some {
    my ($self) = @_;
    sysread $self->{socket}, $self->{got}, 65536, length $self->{got}
        or die "$self->{address} has closed the connection: $!\n";
    if (!$self->{head}) {
        my $end = index $self->{got}, "\r\n\r\n";
        return 0 if $end < 0;
        $self->{head} = $end + 4;
        $self->{wanted} = $self->{head} + $1 if substr($self->{got}, 0, $self->{head}) =~ /^Content-Length: (\d+)/mi;
    }
    # Chunks end with an empty one.
    return 0 if defined $self->{wanted} ? length $self->{got} < $self->{wanted} : substr($self->{got}, -7) ne "\r\n0\r\n\r\n";
    @$self{qw(status body)} = (substr($self->{got}, 9, 3), substr $self->{got}, $self->{head});
    return 1;
}

my ($dir, $files);

# So many requests a second for so many seconds, in turn from a list of [METHOD, PATH], over
# connections in turn, one at a time. One that was due while the one before was on its way
# has waited since then, and that counts. Several addresses (an array) get the same requests at
# the same pace, each without waiting for the others: what the machine does to one, it does to all.
#   connections  4 to each; processors: where it may run
sub start_paced {
    my ($address, $requests, $rate, $seconds, %opt) = @_;
    $dir ||= temp_dir();
    my $out   = "$dir/" . ++$files;
    my @bytes = map { request_bytes(@$_) } @$requests;
    my @to    = ref $address ? @$address : $address;
    my $pid   = fork_child(sub {
        my @lanes = map { my $to = $_; [ map { __PACKAGE__->new($to) } 1 .. $opt{connections} || 4 ] } @to;
        my ($bad, @took) = (0);
        my $start = time;
        my $due   = sub { my ($i, $n) = @_; return $start + ($n + $i / @to) / $rate };
        # For each address: the number of its next request, when the one on its way began, on what
        # connection, and when the last one ended.
        my @state = map { { n => 0, ended => 0 } } @to;
        while (1) {
            my ($bits, $next) = ('', $start + 1e9);
            for my $i (0 .. $#to) {
                my $one  = $state[$i];
                my $when = $due->($i, $one->{n});
                if (!$one->{on} && $when < $start + $seconds) {
                    my $now = time;
                    if ($now >= $when) {
                        $one->{began} = $one->{ended} > $when ? $when : $now;
                        $one->{on}    = $lanes[$i][ $one->{n} % @{ $lanes[$i] } ];
                        $one->{on}->send_bytes($bytes[ $one->{n}++ % @bytes ]);
                    }
                    elsif ($when < $next) { $next = $when }
                }
                vec($bits, fileno $one->{on}{socket}, 1) = 1 if $one->{on};
            }
            last if $bits eq '' && $next > $start + $seconds;
            my $left = $next - time;
            select my $ready = $bits, undef, undef, $left < 0 ? 0 : $left < 30 ? $left : 30;
            for my $i (0 .. $#to) {
                my $one = $state[$i];
                next unless $one->{on} && vec($ready, fileno $one->{on}{socket}, 1) && $one->{on}->read_some;
                $one->{ended} = time;
                push @took, $i, $one->{began}, $one->{ended} - $one->{began};
                $bad++ if $one->{on}{status} ne '200';
                delete $one->{on};
            }
        }
        spew("$out.part", pack 'd*', $bad, @took);
        rename "$out.part", $out;
    });
    Bench::Cpu::pin($opt{processors}, $pid) if defined $opt{processors};
    return { pid => $pid, out => $out, seconds => $seconds, count => scalar @to };
}

# Waits for its end: { bad, of => [[[began, seconds], ...], ...] }, a list for each address.
sub finish_paced {
    my ($pace) = @_;
    my $ended = wait_until(sub { !alive($pace->{pid}) }, $pace->{seconds} + 30);
    stop_process($pace->{pid}, KILL => 1) unless $ended;
    my ($bad, @numbers) = unpack 'd*', slurp($pace->{out});
    unlink $pace->{out};
    die "the requests at a steady pace failed\n" unless @numbers;
    my @of = map { [] } 1 .. $pace->{count};
    while (my ($i, $began, $took) = splice @numbers, 0, 3) { push @{ $of[$i] }, [ $began, $took ] }
    return { bad => $bad, of => \@of };
}

1;
