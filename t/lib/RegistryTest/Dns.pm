package RegistryTest::Dns;

# A small DNS server in a process of its own, over UDP and, for answers that are too long for that,
# TCP, whose answers a test can change at any time.
#
#   a => [...], aaaa => [...]   addresses; a name with neither has none (NOERROR, and no answer)
#   ttl => 60                   seconds (1)
#   cname => 'other.test'       it is another name
#   rcode => 'NXDOMAIN'         or SERVFAIL, REFUSED
#   silent => 1                 no answer at all
#
# A name that was never set does not exist (NXDOMAIN).

use strict;
use warnings;

use JSON::PP ();
use RegistryTest::Process qw(free_port temp_dir slurp spew fork_child stop_process alive);
use Socket;

my %TYPE = (A => 1, CNAME => 5, AAAA => 28);
my %RCODE = (NOERROR => 0, SERVFAIL => 2, NXDOMAIN => 3, REFUSED => 5);
# Longer answers are cut off when they go by UDP.
my $UDP_MAX = 512;

# host (127.0.0.1), port (a free one), names: as for set.
sub new {
    my ($class, %opt) = @_;
    my $self = bless { host => '127.0.0.1', port => free_port(), dir => temp_dir(), names => {}, %opt }, $class;
    $self->set(%{ $self->{names} });
    return $self->start;
}

sub port { return $_[0]{port} }
sub address { return "$_[0]{host}:$_[0]{port}" }

# Sets what is answered about names from now on; undef: such a name does not exist.
sub set {
    my ($self, %names) = @_;
    for my $name (keys %names) {
        if ($names{$name}) { $self->{names}{$name} = $names{$name} }
        else               { delete $self->{names}{$name} }
    }
    # Replaced, never half written: the server reads it for each question.
    spew("$self->{dir}/names.new", JSON::PP->new->canonical->encode($self->{names}));
    rename "$self->{dir}/names.new", "$self->{dir}/names" or die "rename: $!\n";
    return $self;
}

# How often a name was asked for (A or AAAA, or only that), by udp, tcp or both.
sub asked {
    my ($self, $name, $type, $by) = @_;
    return scalar grep {
        my ($n, $t, $b) = split / /;
        $n eq $name && (!$type || $t eq $type) && (!$by || $b eq $by);
    } split /\n/, slurp("$self->{dir}/asked");
}

sub start {
    my ($self) = @_;
    my $at = pack_sockaddr_in($self->{port}, inet_aton($self->{host}));
    socket my $udp, PF_INET, SOCK_DGRAM, 0 or die "socket: $!\n";
    bind $udp, $at or die "dns: bind to " . $self->address . ": $!\n";
    socket my $tcp, PF_INET, SOCK_STREAM, 0 or die "socket: $!\n";
    setsockopt $tcp, SOL_SOCKET, SO_REUSEADDR, 1;
    bind $tcp, $at or die "dns: bind to " . $self->address . ": $!\n";
    listen $tcp, 16 or die "listen: $!\n";
    $self->{pid} = fork_child(sub { $self->_serve($udp, $tcp) }, keep => [ $udp, $tcp ]);
    return $self;
}

# As if the machine were not there: questions are refused by its kernel.
sub stop {
    my ($self) = @_;
    my $pid = delete $self->{pid} or return;
    stop_process($pid, TERM => 5);
    return 1;
}

# From here on: inside the server's process.

sub _serve {
    my ($self, $udp, $tcp) = @_;
    $SIG{TERM} = sub { POSIX::_exit(0) };
    my $bits = '';
    vec($bits, fileno $_, 1) = 1 for $udp, $tcp;
    while (1) {
        next if select(my $ready = $bits, undef, undef, undef) <= 0;
        if (vec $ready, fileno $udp, 1) {
            my $from = recv $udp, my $question, 4096, 0;
            my $answer = defined $from ? $self->_answer($question, 'udp') : undef;
            send $udp, $answer, 0, $from if defined $answer;
        }
        if (vec $ready, fileno $tcp, 1) {
            accept my $client, $tcp or next;
            $self->_serve_tcp($client);
        }
    }
}

# One question, and the next if there is one soon.
sub _serve_tcp {
    my ($self, $client) = @_;
    binmode $client;
    local $SIG{ALRM} = sub { die "time is up\n" };
    eval {
        alarm 2;
        while ((read $client, my $length, 2) == 2) {
            read $client, my $question, unpack 'n', $length;
            my $answer = $self->_answer($question, 'tcp');
            last unless defined $answer;
            my $text = pack('n', length $answer) . $answer;
            while (length $text) {
                my $n = syswrite $client, $text or last;
                substr $text, 0, $n, '';
            }
        }
        alarm 0;
    };
    alarm 0;
    return close $client;
}

sub _name { return join('', map { pack('C/a*', $_) } split /\./, $_[0]) . "\0" }

sub _answer {
    my ($self, $question, $by) = @_;
    my ($id, $flags, $count) = unpack 'n3', $question;
    return if !defined $count || $count != 1;
    my ($name, $at) = ('', 12);
    while (my $length = unpack 'C', substr $question, $at, 1) {
        $name .= ($name eq '' ? '' : '.') . substr $question, $at + 1, $length;
        $at += 1 + $length;
    }
    my ($type) = unpack 'n', substr $question, $at + 1, 2;
    my $asked = substr $question, 12, $at + 5 - 12;
    my ($word) = grep { $TYPE{$_} == $type } keys %TYPE;
    $word ||= $type;
    open my $log, '>>', "$self->{dir}/asked" or die "asked: $!\n";
    syswrite $log, "$name $word $by\n";
    close $log;

    my $set = JSON::PP->new->decode(slurp("$self->{dir}/names"))->{ lc $name } || { rcode => 'NXDOMAIN' };
    return if $set->{silent};
    my $ttl = defined $set->{ttl} ? $set->{ttl} : 1;
    my @records;
    if (defined $set->{cname}) {
        push @records, [ CNAME => _name($set->{cname}) ];
    } elsif ($word eq 'A') {
        push @records, map { [ A => inet_aton($_) ] } @{ $set->{a} || [] };
    } elsif ($word eq 'AAAA') {
        push @records, map { [ AAAA => Socket::inet_pton(AF_INET6, $_) ] } @{ $set->{aaaa} || [] };
    }
    @records = () if $set->{rcode};
    # The owner of each is the name in the question.
    my $answers = join '', map { pack 'n n n N n/a*', 0xc00c, $TYPE{ $_->[0] }, 1, $ttl, $_->[1] } @records;
    my $rcode = $RCODE{ $set->{rcode} || 'NOERROR' };
    my $head = sub { return pack 'n6', $id, 0x8180 | $rcode | $_[0], 1, $_[1], 0, 0 };
    if ($by eq 'udp' && 12 + length($asked) + length($answers) > $UDP_MAX) {
        return $head->(0x0200, 0) . $asked;
    }
    return $head->(0, scalar @records) . $asked . $answers;
}

1;
