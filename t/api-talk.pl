# What the files api-*.t share: a block's section "talk" is a conversation with the API,
# one request after the other, each on a connection of its own:
#
#     > POST /upstream/add port=9001          the body follows the path; one that begins
#     + X-Real-IP: 10.0.0.1                   with { or [ is sent as JSON, others as a form
#     < 200 {"addr":"127.0.0.1:9001",...}     status and data of the reply
#     + Allow: POST                           headers of the reply ("! Name": not there)
#
# The reply must be JSON and nothing else, of exactly this text, where * stands for a number
# and ... for anything. After the status may stand
#
#     {"code":...      the whole reply
#     {                the data of a success
#     [                the data of status: the list of servers, each in { }
#     other text       the message of an error
#     ... alone        anything, of another program
#     nothing          there is no body
#
# and each reply has the Content-Type of JSON in UTF-8, unless "! Content-Type" or another is named.
#
# Blocks without http_config and config get one registry, its upstream, and the API.

use strict;
use warnings;
use JSON::PP ();

no_root_location();

my $NUMBER = '-?\d+(?:\.\d{1,3})?';

sub expected_reply {
    my ($status, $text) = @_;
    return qr/^\z/ if $text eq '';
    return qr/./ if $text eq '...';
    utf8::decode($text);
    my $total = () = $text =~ /\{/g;
    my $json = $text =~ /^\{"code":/ ? $text
        : $text =~ /^\[/ ? qq({"code":$status,"message":"Success","data":$text,"total":$total,"timestamp":*})
        : $text =~ /^\{/ ? qq({"code":$status,"message":"Success","data":$text})
        : qq({"code":$status,"message":) . JSON::PP->new->allow_nonref->encode($text) . '}';
    utf8::encode($json) if utf8::is_utf8($json);
    my $pattern = join '', map {
        $_ eq '*' ? $NUMBER : $_ eq '...' ? '.*?' : quotemeta
    } split /(\*|\.\.\.)/, $json;
    return qr/^$pattern\n\z/s;
}

sub read_talk {
    my ($text) = @_;
    my (@requests, @replies, $open);
    for my $line (grep { /\S/ && !/^#/ } split /\n/, $text) {
        if ($line =~ /^> (\S+ \S+)(?: (.*))?$/) {
            my ($request, $body) = ($1, defined $2 ? $2 : '');
            my $type = $body =~ /^[\{\[]/ ? 'application/json' : 'application/x-www-form-urlencoded';
            push @requests, { line => $request, body => $body, headers => [] };
            $requests[-1]{type} = "Content-Type: $type" if $body ne '';
            $open = $requests[-1];
        }
        elsif ($line =~ /^< (\d{3}) ?(.*)$/) {
            push @replies, { status => $1, body => expected_reply($1, $2), headers => [] };
            $open = $replies[-1];
        }
        elsif ($line =~ /^\+ (.*)$/) {
            push @{ $open->{headers} }, $1;
            delete $open->{type} if $1 =~ /^Content-Type:/i;
        }
        else { die "what is this in a talk: $line\n" }
    }
    die "requests and replies don't match\n" unless @requests == @replies;
    return (\@requests, \@replies);
}

add_block_preprocessor(sub {
    my ($block) = @_;
    if (!defined $block->http_config) {
        $block->set_value(http_config => "registry main 128k { }\nupstream backend { registry main; }\n");
    }
    if (!defined $block->config) {
        $block->set_value(config => "location /upstream/ { registry_api main; }\n");
    }
    return unless defined $block->talk;
    my ($requests, $replies) = read_talk($block->talk);
    $block->set_value(request => [ map { "$_->{line}\n$_->{body}" } @$requests ]);
    $block->set_value(more_headers => [ map {
        join "\n", $_->{type} || (), @{ $_->{headers} }
    } @$requests ]);
    $block->set_value(error_code => [ map { $_->{status} } @$replies ]);
    $block->set_value(response_body => [ map { $_->{body} } @$replies ]);
    $block->set_value(response_headers => [ map {
        my @headers = @{ $_->{headers} };
        unshift @headers, 'Content-Type: application/json; charset=utf-8'
            unless grep { /Content-Type/ } @headers;
        join "\n", @headers;
    } @$replies ]);
});

1;
